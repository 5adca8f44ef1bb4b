"""Where an ONNX graph leaves the model: the module that is wrong is named, and a script shows it."""

import subprocess
import sys

import numpy as np
import pytest

from tests.artifact_edits import change_onnx, scale_weight
from torchport.model.graphs import model_graphs
from torchport.model.trained import trained_model
from torchport.recipe.variants import backend_options
from torchport.verify.outputs.layer_errors import first_wrong, layer_errors
from torchport.verify.verifying import verify

DEEP = (
    "return nn.Linear(3, 2)",
    """class Block(nn.Module):
            def __init__(self, width):
                super().__init__()
                self.inner = nn.Linear(width, width)
                self.norm = nn.LayerNorm(width)
                self.act = nn.GELU()

            def forward(self, x):
                return x + self.act(self.norm(self.inner(x)))

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = Block(3)
                self.second = Block(3)
                self.head = nn.Linear(3, 2)

            def forward(self, x):
                return self.head(self.second(self.first(x)))

        return Net()""",
)


@pytest.mark.parametrize("wrong", ["first.inner", "second.inner", "head"])
def test_the_first_module_that_differs_is_named(built, wrong):
    recipe, folder = built(DEEP)
    change_onnx(folder, scale_weight(f"{wrong}.weight", 1.001))
    failures = verify(recipe, folder).failures
    (found,) = (f for f in failures if "first module that differs" in f)
    assert found.startswith("onnxruntime on cpu, graph main, sample 0: the first module that differs is ")
    assert f" is {wrong} (Linear; " in found
    assert ".build/tiny/1.0/reproduce/main.py" in found
    script = folder.path / "reproduce" / "main.py"
    shown = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=120)
    marked = [line for line in shown.stdout.splitlines() if line.endswith("more than it may be")]
    assert marked[0].startswith(f"{wrong} (Linear; ")


def test_a_norms_epsilon_names_the_norm(built):
    recipe, folder = built(DEEP)

    def change(graph):
        norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
        (epsilon,) = (a for a in norms[1].attribute if a.name == "epsilon")
        epsilon.f = 1e-3

    change_onnx(folder, change)
    assert any("differs is second.norm (LayerNorm; " in f for f in verify(recipe, folder).failures)


def test_every_module_of_a_right_graph_is_within_its_bound(shipped, digits_archive):
    from torchport.recipe.loading import load_recipe
    from torchport.verify.outputs.cases import parity_cases

    recipe = load_recipe("digits_resnet18")
    folder = shipped.build(recipe.name, recipe.version)
    module = model_graphs(recipe, trained_model(recipe, folder))["main"]
    signature = recipe.signatures()["main"]
    case = next(iter(parity_cases(recipe, "main", signature)))
    inputs = {name: array[:2] for name, array in case.inputs.items()}
    options = backend_options(recipe, "onnxruntime", "cpu")
    layers = layer_errors(module, signature, folder.path / "main.onnx", inputs, options)
    seen = [layer.module for layer in layers]
    assert {"maxpool", "layer1.0", "layer4.1", "avgpool", "fc", "(the model)"} <= set(seen)
    assert seen.index("layer1.0") < seen.index("layer4.1") < seen.index("fc")
    assert first_wrong(layers) is None
    assert all(np.isfinite(layer.error) for layer in layers)
    # Batch norm is folded into the convolution before it: what is seen is the norm, and not the convolution.
    assert "bn1" in seen
    assert "conv1" not in seen
