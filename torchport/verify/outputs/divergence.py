"""Finds the module where a failed ONNX graph first differs.

divergence(recipe, folder, "main", module, signature, case)
# "the first module that differs is layer1.0.bn1 (BatchNorm2d; Conv): error 0.12, bound 3.1e-05; ..."
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport.errors import BackendError
from torchport.model.graphs import model_graphs
from torchport.model.trained import trained_model
from torchport.recipe.contract import Recipe
from torchport.recipe.loading import load_recipe
from torchport.recipe.variants import backend_options
from torchport.store.files import write_bytes
from torchport.store.folders import BuildFolder
from torchport.verify.outputs.cases import Case
from torchport.verify.outputs.layer_errors import first_wrong, layer_errors
from torchport_runtime import Signature, write_arrays
from torchport_runtime.options import ARTIFACT_SUFFIX

if TYPE_CHECKING:
    from torch import nn

FOLDER = "reproduce"

_SCRIPT = '''"""Shows where {artifact} leaves the trained model, on the case {case!r} of torchport verify."""

from pathlib import Path

from torchport.verify.outputs.divergence import errors_by_module

folder = Path(__file__).parents[1]
print(errors_by_module(folder, recipe={recipe!r}, parameters={parameters!r}, graph={graph!r}))
'''


def divergence(
    recipe: Recipe, folder: BuildFolder, graph: str, module: nn.Module, signature: Signature, case: Case
) -> str:
    """Name the first module whose output the graph gets wrong on this case.

    Also writes a script that shows it.
    """
    artifact = f"{graph}{ARTIFACT_SUFFIX['onnxruntime']}"
    options = backend_options(recipe, "onnxruntime", "cpu")
    try:
        layers = layer_errors(module, signature, folder.path / artifact, case.inputs, options)
    except BackendError as err:
        return f"which module differs cannot be told: {err}"
    wrong = first_wrong(layers)
    if wrong is None:
        return (
            f"none of the {len(layers)} modules that can be told apart differs by itself: look at what comes "
            "after the last of them, or at what the session's graph optimisation puts together"
        )
    script = _write_script(recipe, folder, graph, artifact, case)
    return (
        f"the first module that differs is {wrong}: error {wrong.error:.3g}, bound {wrong.bound:.3g}; "
        f"to see it: python {script}"
    )


def errors_by_module(folder: Path, *, recipe: str, parameters: Mapping[str, Any], graph: str) -> str:
    """Error of each module, one per line, on the inputs kept by `divergence`.

    Scripts in users' stores call it: its signature stays.

    Raises:
        StaleError: not trained, or weights, assets or recipe are not those of the training.
        BackendError: the ONNX graph does not load.
    """
    loaded = load_recipe(recipe, parameters)
    build = BuildFolder(folder, loaded.name, loaded.version)
    module = model_graphs(loaded, trained_model(loaded, build))[graph]
    inputs = dict(np.load(folder / FOLDER / f"{graph}.npz"))
    artifact = folder / f"{graph}{ARTIFACT_SUFFIX['onnxruntime']}"
    options = backend_options(loaded, "onnxruntime", "cpu")
    lines = []
    for layer in layer_errors(module, loaded.signatures()[graph], artifact, inputs, options):
        mark = "" if layer.error <= layer.bound else "  <-- more than it may be"
        error = f"error {layer.error:.3g}, eager's {layer.eager_error:.3g}, bound {layer.bound:.3g}"
        lines.append(f"{layer}: {error}{mark}")
    return "\n".join(lines)


def _write_script(recipe: Recipe, folder: BuildFolder, graph: str, artifact: str, case: Case) -> str:
    script = folder.path / FOLDER / f"{graph}.py"
    text = _SCRIPT.format(
        artifact=artifact,
        case=case.name,
        recipe=str(recipe.path),
        parameters=dict(recipe.parameters),
        graph=graph,
    )
    write_bytes(script.with_suffix(".npz"), write_arrays(_contiguous(case), "npz"))
    write_bytes(script, text.encode())
    # Below the store: a certificate names no folder of a machine's.
    return f".build/{folder.name}/{folder.version}/{FOLDER}/{script.name}"


def _contiguous(case: Case) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array) for name, array in case.inputs.items()}
