"""Finds the module where a failed ONNX graph first differs.

divergence(recipe, folder, "main", module, signature, case)
# "the first module that differs is layer1.0.bn1 (BatchNorm2d; Conv): error 0.12, bound 3.1e-05; ..."
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from torchport.errors import BackendError
from torchport.recipe.contract import Recipe
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

import numpy as np

from torchport.model.graphs import model_graphs
from torchport.model.trained import trained_model
from torchport.recipe.loading import load_recipe
from torchport.recipe.variants import backend_options
from torchport.store.folders import BuildFolder
from torchport.verify.outputs.layer_errors import layer_errors

folder = BuildFolder(Path(__file__).parent.parent, {name!r}, {version!r})
recipe = load_recipe({recipe!r}, {parameters!r})
module = model_graphs(recipe, trained_model(recipe, folder))[{graph!r}]
inputs = dict(np.load(Path(__file__).with_suffix(".npz")))
options = backend_options(recipe, "onnxruntime", "cpu")
for layer in layer_errors(
    module, recipe.signatures()[{graph!r}], folder.path / {artifact!r}, inputs, options
):
    mark = "" if layer.error <= layer.bound else "  <-- more than it may be"
    error = f"error {{layer.error:.3g}}, eager's {{layer.eager_error:.3g}}, bound {{layer.bound:.3g}}"
    print(f"{{layer}}: {{error}}{{mark}}")
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


def _write_script(recipe: Recipe, folder: BuildFolder, graph: str, artifact: str, case: Case) -> str:
    script = folder.path / FOLDER / f"{graph}.py"
    text = _SCRIPT.format(
        artifact=artifact,
        case=case.name,
        name=folder.name,
        version=folder.version,
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
