"""Exports trained weights: TorchScript, ONNX and torch.export files per graph.

    result = export(load_recipe("linear"), store.build("linear", "1.0"))
    result.record["artifacts"]["main.onnx"]["opset"]

The files are `main.pt`, `main.onnx` and `main.pt2`, and one for each half precision that the recipe
names (`main.bfloat16.pt2`). Every artifact is serialised in memory, made free of paths and of
process-wide counters, and written under a temporary name: the same weights give the same bytes in any
folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchport.errors import ExportError, StaleError
from torchport.export.artifacts import make_artifacts
from torchport.model.graphs import model_graphs
from torchport.model.trained import rebuilt_model, require_training
from torchport.recipe.contract import Recipe
from torchport.store.files import write_bytes, write_json
from torchport.store.folders import BuildFolder
from torchport.store.hashing import sha256_bytes
from torchport.store.stage_result import StageResult
from torchport.store.versions import library_versions
from torchport_runtime.backends.aotinductor import built_here

FORMAT = 2
"""Version of the export record. A record of another version is stale: the model is exported again."""


class ExportResult(StageResult):
    """The artifacts and `export.json`. Not done if they were of these weights already."""


def export(
    recipe: Recipe,
    folder: BuildFolder,
    *,
    force: bool = False,
    tell: Callable[[str], None] = lambda message: None,
) -> ExportResult:
    """Export every graph of the recipe for every backend that it names.

    Raises:
        StaleError: the recipe is not trained.
        ExportError: the model cannot be exported as the recipe says; all backends' failures in one.
    """
    with folder.lock():
        training = require_training(recipe, folder)
        model = rebuilt_model(recipe, folder)
        inputs = {
            "format": FORMAT,
            "weights": training["weights_sha256"],
            "sources": dict(recipe.sources),
            "backends": list(recipe.backends),
            "optional_backends": list(recipe.optional_backends),
            "torchscript": recipe.torchscript,
            **_precisions(recipe),
            **({"compiled_for": built_here()} if "aotinductor" in recipe.backends else {}),
            "libraries": library_versions("torch", "onnx", "onnx-ir", "onnxscript"),
        }
        why = _why_export(folder, inputs)
        if why is None and not force:
            return ExportResult(False, folder.export_record() or {}, "unchanged weights and recipe")
        signatures = recipe.signatures()
        graphs = model_graphs(recipe, model)
        if set(graphs) != set(signatures):
            raise ExportError(
                f"{recipe.path.name}: graphs() has {sorted(graphs)}, signatures() has {sorted(signatures)}"
            )
        made = make_artifacts(recipe, graphs, signatures, tell)
        signature_json = {"graphs": {name: s.to_json() for name, s in signatures.items()}}
        write_json(folder.signature, signature_json)
        signature_entry = {"sha256": sha256_bytes(folder.signature.read_bytes())}
        for name, content in made.contents.items():
            write_bytes(folder.path / name, content)
        record = {
            "inputs": inputs,
            "artifacts": {**made.entries, "signature.json": signature_entry},
            "failed": made.failed,
            **({"guards": made.guards} if made.guards else {}),
        }
        write_json(folder.export, record)
        return ExportResult(True, record, why or "asked for")


def _precisions(recipe: Recipe) -> dict[str, Any]:
    """Precision keys of the record; none for float32 alone, so older records stay valid."""
    if tuple(recipe.precisions) == ("float32",):
        return {}
    return {
        "precisions": list(recipe.precisions),
        "optional_precisions": list(recipe.optional_precisions),
    }


def _why_export(folder: BuildFolder, inputs: dict[str, Any]) -> str | None:
    record = folder.export_record()
    if record is None:
        return "not exported yet"
    if record["inputs"] != inputs:
        return "the weights, the recipe or a library has changed"
    try:
        folder.require_artifacts()
    except StaleError as err:
        return str(err).split(": ", 1)[1]
    return None
