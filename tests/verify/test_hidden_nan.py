"""Which of ONNX Runtime's kernels give finite numbers for NaN, each run by itself."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from torchport.verify.outputs.hidden_nan import HIDING, kernels_that_hide
from torchport_runtime import BackendOptions

OPTIONS = BackendOptions(device="cpu")
DRAW = np.random.default_rng(0)


def weights(*shape):
    return DRAW.standard_normal(shape).astype(np.float32)


def cell(gates):
    """A recurrent cell of six units as PyTorch's are exported: with biases and a first state."""
    given = [weights(1, 6 * gates, 8), weights(1, 6 * gates, 6), weights(1, 12 * gates), None]
    states = [np.zeros((1, 2, 6), np.float32)] * (2 if gates == 4 else 1)
    return (5, 2, 8), {"hidden_size": 6}, [*given, *states]


SINGLE = {
    "GRU": cell(3),
    "LSTM": cell(4),
    "MaxPool": ((1, 3, 8, 8), {"kernel_shape": [2, 2]}, []),
    "GlobalMaxPool": ((1, 3, 8, 8), {}, []),
    "ThresholdedRelu": ((2, 8), {}, []),
    "RNN": cell(1),
    "Relu": ((2, 8), {}, []),
    "Sigmoid": ((2, 8), {}, []),
    "Tanh": ((2, 8), {}, []),
    "Erf": ((2, 8), {}, []),
    "Clip": ((2, 8), {}, [np.float32(0), np.float32(6)]),
    "Max": ((2, 8), {}, [weights(2, 8)]),
    "ReduceMax": ((2, 8), {}, [np.array([1])]),
    "Softmax": ((2, 8), {}, []),
    "AveragePool": ((1, 3, 8, 8), {"kernel_shape": [2, 2]}, []),
    "Conv": ((1, 3, 8, 8), {}, [weights(4, 3, 3, 3)]),
    "Gemm": ((2, 8), {}, [weights(8, 4)]),
    "LayerNormalization": ((2, 8), {}, [weights(8), weights(8)]),
    "BatchNormalization": ((2, 8), {}, [weights(8), weights(8), weights(8), np.ones(8, np.float32)]),
}
"""Shape of the input, attributes, other inputs."""


@pytest.fixture
def hiding(tmp_path):
    """The kernels named for one node and an input of these NaN."""

    def ask(operator, nan):
        shape, attributes, others = SINGLE[operator]
        names = ["x", *("" if array is None else f"c{i}" for i, array in enumerate(others))]
        constants = [numpy_helper.from_array(a, f"c{i}") for i, a in enumerate(others) if a is not None]
        graph = helper.make_graph(
            [helper.make_node(operator, names, ["y"], name="one", **attributes)],
            "single",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.save(model, tmp_path / "single.onnx")
        x = DRAW.standard_normal(shape).astype(np.float32)
        x[nan] = np.nan
        return kernels_that_hide(tmp_path / "single.onnx", {"x": x}, "y", OPTIONS)

    return ask


@pytest.mark.parametrize("operator", HIDING)
def test_those_that_are_listed_hide_it(hiding, operator):
    # One NaN among other numbers of a window, or nothing but NaN.
    nan = (0, 0, 0, 0) if operator.endswith("MaxPool") else ...
    assert hiding(operator, nan) == [f"{operator} one"]


@pytest.mark.parametrize("operator", [name for name in SINGLE if name not in HIDING])
def test_the_others_keep_it_and_are_no_excuse(hiding, operator, monkeypatch):
    assert hiding(operator, ...) == []
    monkeypatch.setattr("torchport.verify.outputs.hidden_nan.HIDING", (operator,))
    assert hiding(operator, ...) == []


def test_without_nan_nothing_is_hidden(hiding):
    assert hiding("GRU", slice(0)) == []


def test_a_kernel_that_another_output_follows_from_is_no_excuse(tmp_path):
    pool = helper.make_node("GlobalMaxPool", ["x"], ["pooled"], name="pool")
    double = helper.make_node("Add", ["pooled", "pooled"], ["largest"])
    # The other output's branch reads the pooled values from an inner graph: it follows from them, too.
    inner = helper.make_graph(
        [helper.make_node("Neg", ["pooled"], ["negative"])],
        "then",
        [],
        [helper.make_tensor_value_info("negative", TensorProto.FLOAT, None)],
    )
    branch = helper.make_node("If", ["yes"], ["branched"], then_branch=inner, else_branch=inner)
    clip = helper.make_node("Relu", ["x"], ["clipped"])
    graph = helper.make_graph(
        [pool, double, branch, clip],
        "three",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in ("largest", "branched", "clipped")
        ],
        [numpy_helper.from_array(np.array(True), "yes")],
    )
    path = tmp_path / "three.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    x = DRAW.standard_normal((1, 3, 8, 8)).astype(np.float32)
    x[0, 0, 0, 0] = np.nan
    found = {
        name: kernels_that_hide(path, {"x": x}, name, OPTIONS) for name in ("largest", "branched", "clipped")
    }
    assert found == {
        "largest": ["GlobalMaxPool pool"],
        "branched": ["GlobalMaxPool pool"],
        "clipped": [],
    }
