"""ONNX files that something has been done to: other weights, edited graphs."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.artifact_edits import change_onnx
from tests.verify.defects.conftest import Model
from tests.verify.defects.failures import says
from torchport.verify.verifying import verify

ONNX = ("onnxruntime",)


WIDE = Model(
    layers="self.inner = nn.Linear(64, 64)",
    right="y = self.inner(x)",
    inputs={"x": '"float32", ("batch", 64)'},
    outputs={"y": '"float32", ("batch", 64)'},
    backends=ONNX,
)


def edit_weights(change):
    """The greatest initializer of a graph, by another function of its values."""

    def edit(graph):
        tensor = max(graph.initializer, key=lambda t: numpy_helper.to_array(t).size)
        values = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))

    return edit


def flip_one(values):
    values[17, 3] = -values[17, 3]
    return values


def to_int8(values):
    step = np.abs(values).max() / 127
    return np.round(values / step) * step


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(flip_one, id="one weight of 4096 with its sign turned"),
        pytest.param(lambda w: w * 1.001, id="a layer off by a thousandth"),
        pytest.param(lambda w: w.astype(np.float16), id="weights of half precision"),
        pytest.param(to_int8, id="quantised weights"),
        pytest.param(lambda w: w.T, id="a matrix transposed"),
    ],
)
def test_other_weights_in_an_onnx_file(shipped_as, change):
    recipe, folder = shipped_as(WIDE)
    change_onnx(folder, edit_weights(change))
    failures = verify(recipe, folder).failures
    says(failures, "onnxruntime on cpu, graph main", "output 'y'", "exceeds the bound")
    if change is flip_one:
        says(failures, "all at index 17 of axis 1")


def test_another_epsilon_in_an_onnx_batch_norm(shipped_as):
    recipe, folder = shipped_as(
        Model(
            layers="self.norm = nn.GroupNorm(2, 6)",
            right="y = self.norm(x)",
            backends=ONNX,
        )
    )

    def edit(graph):
        (tensor,) = (t for t in graph.initializer if 0 < float(numpy_helper.to_array(t).max()) < 1e-4)
        changed = np.full_like(numpy_helper.to_array(tensor), 1e-3)
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))

    def edit_attribute(graph):
        attributes = [a for node in graph.node for a in node.attribute if a.name == "epsilon"]
        if not attributes:
            return edit(graph)
        for attribute in attributes:
            attribute.f = 1e-3
        return None

    change_onnx(folder, edit_attribute)
    says(verify(recipe, folder).failures, "output 'y'", "small", "exceeds the bound")


def test_outputs_under_each_others_names(shipped_as):
    recipe, folder = shipped_as(
        Model(
            layers="self.inner = nn.Linear(6, 6)",
            right="y = self.inner(x), x.exp()",
            outputs=dict.fromkeys(("logits", "odds"), '"float32", ("batch", 6)'),
            backends=ONNX,
        )
    )

    def swap(graph):
        graph.output.reverse()

    change_onnx(folder, swap)
    says(verify(recipe, folder).failures, "outputs are ['odds', 'logits'], the signature has")


def test_an_output_cast_to_another_dtype(shipped_as):
    recipe, folder = shipped_as(Model(right="y = x * 2", backends=ONNX))

    def cast(graph):
        for node in graph.node:
            node.output[:] = ["y_single" if o == "y" else o for o in node.output]
        graph.node.append(helper.make_node("Cast", ["y_single"], ["y"], to=TensorProto.DOUBLE))
        graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE

    change_onnx(folder, cast)
    says(verify(recipe, folder).failures, "output 'y': got float64", "expected float32")


def test_an_input_that_an_onnx_graph_takes_in_another_order(shipped_as):
    recipe, folder = shipped_as(
        Model(
            right="y = left - 2 * right",
            inputs=dict.fromkeys(("left", "right"), '"float32", ("batch", 6)'),
            backends=ONNX,
        )
    )

    def exchange(graph):
        for node in graph.node:
            node.input[:] = [{"left": "right", "right": "left"}.get(i, i) for i in node.input]

    change_onnx(folder, exchange)
    assert [value.name for value in onnx.load(folder.path / "main.onnx").graph.input] == ["left", "right"]
    says(verify(recipe, folder).failures, "output 'y'", "exceeds the bound")
