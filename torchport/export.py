"""Weights to artifacts: `main.pt` (TorchScript), `main.onnx`, `main.pt2` (torch.export), per graph; in half
precision too (`main.bfloat16.pt2`) where the recipe names one.

    result = export(load_recipe("linear"), store.build("linear", "1.0"))
    result.record["artifacts"]["main.onnx"]["opset"]

Every artifact is serialised in memory, made free of paths and of process-wide counters, and written
under a temporary name: the same weights give the same bytes in any folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport.errors import ExportError, RecipeError, StaleError
from torchport.hashing import sha256_bytes
from torchport.recipe import Recipe
from torchport.store import BuildFolder, write_bytes, write_json
from torchport.training import require_training, trained_model
from torchport.user_code import running
from torchport.versions import library_versions
from torchport_runtime import Signature
from torchport_runtime.aotinductor_backend import built_here
from torchport_runtime.signature import TensorSpec

if TYPE_CHECKING:
    from torch import nn

FORMAT = 2
"""Of the record. What was exported under another one is exported again."""

ROOM = 11
"""Above a dimension's least size, where it is traced."""


@dataclass(frozen=True)
class ExportResult:
    """`done` is False where the artifacts were there already, of these weights."""

    done: bool
    record: dict[str, Any]
    why: str


def export(
    recipe: Recipe,
    folder: BuildFolder,
    *,
    force: bool = False,
    tell: Callable[[str], None] = lambda message: None,
) -> ExportResult:
    """Export every graph of the recipe for every backend it names.

    Raises:
        StaleError: the recipe is not trained.
        ExportError: the model cannot be exported as the recipe says; all backends' failures in one.
    """
    from torchport.artifacts import make_artifacts

    with folder.lock():
        model = trained_model(recipe, folder)
        training = require_training(recipe, folder)
        inputs = {
            "format": FORMAT,
            "weights": training["weights_sha256"],
            "sources": dict(recipe.sources),
            "backends": list(recipe.backends),
            "optional_backends": list(recipe.optional_backends),
            "torchscript": recipe.torchscript,
            **_precisions(recipe),
            **({"compiled_for": built_here()} if "aotinductor" in recipe.backends else {}),
            "libraries": library_versions("torch", "onnx", "onnxscript"),
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
            **({"failed_precisions": made.failed_precisions} if made.failed_precisions else {}),
            **({"guards": made.guards} if made.guards else {}),
        }
        write_json(folder.export, record)
        return ExportResult(True, record, why or "asked for")


def _precisions(recipe: Recipe) -> dict[str, Any]:
    """What is to be written down of them: nothing where it is float32 alone, as before there were others."""
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


def exported_backends(recipe: Recipe, folder: BuildFolder) -> list[str]:
    """The recipe's backends without those that may fail and did."""
    failed = (folder.export_record() or {}).get("failed", {})
    return [backend for backend in recipe.backends if backend not in failed]


def model_graphs(recipe: Recipe, model: nn.Module) -> dict[str, nn.Module]:
    """The recipe's graphs of a trained model.

    Raises:
        RecipeError: graphs() fails, or gives something else than modules by name.
    """
    from torch import nn

    with running(recipe.path, "graphs"):
        graphs = recipe.graphs(model)
    if not isinstance(graphs, dict) or not all(isinstance(g, nn.Module) for g in graphs.values()):
        raise RecipeError(
            f"{recipe.path.name}: graphs() gives {type(graphs).__name__}, expected modules by name"
        )
    return graphs


def example_inputs(signature: Signature, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs to trace with, every symbolic dimension of at least 2 and each of another size.

    A dimension of 1 would be specialised, and two of the same size could be taken for one. But for the
    batch they are not the least either: a window that fits in but once is taken for a fixed one.
    """
    taken: set[int] = set()
    sizes: dict[str, int] = {}
    for symbol, (low, high) in signature.dims.items():
        least = max(low, 2)
        start = least if symbol == signature.batch_dim else min(least + ROOM, high)
        upward, downward = range(start, high + 1), range(start - 1, least - 1, -1)
        sizes[symbol] = next((size for size in chain(upward, downward) if size not in taken), high)
        taken.add(sizes[symbol])
    return random_inputs(signature, sizes, seed)


def random_inputs(signature: Signature, sizes: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """Inputs of the given sizes: standard normal within a spec's bounds, or uniform integers."""
    generator = np.random.default_rng(seed)
    return {
        name: random_tensor(spec, spec.resolve(sizes), generator) for name, spec in signature.inputs.items()
    }


def random_tensor(spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b":
        mask = generator.integers(0, 2, shape).astype(dtype)
        if mask.ndim > 1:
            mask[..., 0] = True  # Nothing at all to attend to is NaN in most models; `zeros` tries that.
        return mask
    if dtype.kind in "iu":
        low = 0 if spec.low is None else int(spec.low)
        high = max(low, 100) if spec.high is None else int(spec.high)
        return generator.integers(low, high, shape, endpoint=True).astype(dtype)
    if spec.low is not None and spec.high is not None:
        return generator.uniform(spec.low, spec.high, shape).astype(dtype)
    return np.clip(generator.standard_normal(shape), spec.low, spec.high).astype(dtype)


def check_eager_outputs(
    recipe: Recipe,
    graph: str,
    module: nn.Module,
    signature: Signature,
    inputs: dict[str, np.ndarray],
    precision: str = "float32",
) -> None:
    """Hold what the model returns against the signature, before anything is exported.

    Raises:
        ExportError: forward fails on inputs of the signature's shapes, or returns something else.
    """
    from torchport.eager import EagerBackend
    from torchport.exporters import where_in_user_code

    try:
        outputs = EagerBackend(module, signature, precision=precision).run(inputs)
        signature.check_outputs(outputs)
    except Exception as err:  # forward is the user's code: whatever it raises is reported with its line.
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        if precision != "float32":
            raise ExportError(
                f"{where_in_user_code(err, recipe)}: {type(module).__name__} does not run in {precision} on "
                f"this machine's CPU: {str(err)[:400] or type(err).__name__}: take {precision} out of the "
                "recipe's precisions, or make it one of its optional_precisions"
            ) from err
        raise ExportError(
            f"{where_in_user_code(err, recipe)}: {type(module).__name__} on inputs {shapes}: "
            f"{str(err)[:400] or type(err).__name__} ({_likely_reason(err, signature)})"
        ) from err


def _likely_reason(err: Exception, signature: Signature) -> str:
    unbounded = [
        name
        for name, spec in signature.inputs.items()
        if spec.numpy_dtype.kind in "iu" and (spec.low is None or spec.high is None)
    ]
    if isinstance(err, IndexError) and unbounded:
        return (
            f"which integers may input {unbounded[0]!r} hold? Its TensorSpec says so: low=0 and high=999 "
            "for an embedding of 1,000 rows"
        )
    return "the recipe's inputs and outputs are to be what forward takes and returns"
