"""What an export took from the sizes that it was traced with."""

import numpy as np
import onnx
import pytest

from torchport.errors import ExportError
from torchport.export.traced_sizes import first_difference, other_sizes, same_answers
from torchport_runtime import Signature, TensorSpec

HEAD = '<ir_version: 8, opset_import: ["" : 18]>'


def graph(body: str) -> bytes:
    text = f"{HEAD}\nagraph (float[n, 4] x) => (float[n, k] y) {body}"
    return onnx.parser.parse_model(text).SerializeToString()


def with_constant(values: str) -> bytes:
    return graph(f"<int64[2] shape = {{{values}}}> {{ y = Reshape(x, shape) }}")


def signature(**dims: tuple[int, int]) -> Signature:
    spec = TensorSpec("float32", tuple(dims))
    return Signature(inputs={"x": spec}, outputs={"y": spec}, dims=dims)


def test_sizes_of_a_second_trace_differ_wherever_they_can():
    dims = signature(batch=(1, 8), time=(1, 64), width=(5, 6))
    sizes = other_sizes(dims, {"batch": 2, "time": 13, "width": 6})
    # The batch has 5 by now, so that the width keeps its size: no two names have one size.
    assert sizes == {"batch": 5, "time": 16, "width": 6}


def test_sizes_that_outputs_alone_have_are_not_chosen():
    dims = signature(batch=(1, 4), time=(2, 12), less=(1, 11))
    assert other_sizes(dims, {"batch": 2, "time": 12}) == {"batch": 3, "time": 11}


def test_sizes_of_a_second_trace_are_those_that_guards_admit():
    dims = signature(batch=(1, 8), time=(1, 64))
    sizes = other_sizes(dims, {"batch": 2, "time": 13}, lambda sizes: sizes["time"] % 2 == 1)
    assert sizes is not None
    assert sizes["time"] % 2 == 1
    assert other_sizes(dims, {"batch": 2, "time": 13}, lambda sizes: False) is None
    assert other_sizes(signature(batch=(2, 2)), {"batch": 2}) is None


def test_names_of_values_do_not_count():
    assert first_difference(graph("{ a = Relu(x) y = Neg(a) }"), graph("{ b = Relu(x) y = Neg(b) }")) is None


DIFFERENCES = {
    "a constant's values": (
        with_constant("13, -1"),
        with_constant("16, -1"),
        ("y", "takes a constant int64[2] of [13, -1] and a constant int64[2] of [16, -1]"),
    ),
    "a constant's shape": (
        graph("<float[2] c = {1, 2}> { y = Add(x, c) }"),
        graph("<float[3] c = {1, 2, 3}> { y = Add(x, c) }"),
        ("y", "takes a constant float32[2] of [1.0, 2.0] and a constant float32[3] of [1.0, 2.0, 3.0]"),
    ),
    "a node that is a constant": (
        graph("{ c = Constant<value_ints = [13, -1]>() y = Reshape(x, c) }"),
        graph("{ c = Constant<value_ints = [16, -1]>() y = Reshape(x, c) }"),
        ("c", "has another 'value_ints' in each"),
    ),
    "an attribute": (
        graph("{ y = Concat<axis = 0>(x) }"),
        graph("{ y = Concat<axis = 1>(x) }"),
        ("y", "has another 'axis' in each"),
    ),
    "an operator": (graph("{ y = Relu(x) }"), graph("{ y = Neg(x) }"), ("y", "is Neg in the other")),
    "a node more": (
        graph("{ y = Relu(x) z = Neg(y) }"),
        graph("{ y = Relu(x) }"),
        ("z", "is in one of them only"),
    ),
    "an input more": (
        graph("{ y = Sum(x, x) }"),
        graph("{ y = Sum(x) }"),
        ("y", "has another number of inputs or outputs in the other"),
    ),
    "a connection": (
        graph("{ a = Relu(x) b = Relu(a) y = Neg(a) }"),
        graph("{ a = Relu(x) b = Relu(a) y = Neg(b) }"),
        ("y", "takes a computed value and a computed value"),
    ),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_the_first_difference_is_named(case):
    first, second, expected = DIFFERENCES[case]
    found = first_difference(first, second)
    assert found is not None
    assert (found.node, found.what) == expected
    assert first_difference(first, first) is None


def test_constants_inside_a_branch_are_compared_too():
    def branching(size: int) -> bytes:
        return graph(
            "{ c = Constant<value_int = 1>() ok = Cast<to = 9>(c) y = If (ok) <"
            f"then_branch = t () => (float[n, k] a) <int64[2] s = {{{size}, -1}}> {{ a = Reshape(x, s) }}, "
            "else_branch = e () => (float[n, k] b) { b = Identity(x) }> }"
        )

    found = first_difference(branching(13), branching(16))
    assert found is not None
    assert (found.node, found.operator) == ("a", "Reshape")
    assert first_difference(branching(13), branching(13)) is None


def test_graphs_that_differ_and_answer_alike_are_told_from_those_that_do_not():
    inputs = {"x": np.ones((16, 4), np.float32)}
    assert same_answers(with_constant("0, -1"), with_constant("16, -1"), inputs)
    assert not same_answers(with_constant("13, -1"), with_constant("16, -1"), inputs)  # The first fails.
    assert not same_answers(graph("{ y = Relu(x) }"), graph("{ y = Neg(x) }"), inputs)
    assert not same_answers(with_constant("-1, 2"), with_constant("16, -1"), inputs)  # Another shape.
    assert same_answers(with_constant("16, -1"), with_constant("13, -1"), inputs)  # The second fails.


def test_a_difference_counts_beside_the_size_of_what_is_compared():
    small = {"x": np.full((16, 4), 1e-6, np.float32)}
    assert not same_answers(graph("{ y = Add(x, x) }"), graph("{ y = Relu(x) }"), small)
    infinite = {"x": np.array([[np.inf, 1, np.nan, 2]], np.float32)}
    assert same_answers(graph("{ y = Relu(x) }"), graph("{ y = Relu(x) }"), infinite)
    assert not same_answers(graph("{ y = Add(x, x) }"), graph("{ y = Relu(x) }"), infinite)


@pytest.mark.road
@pytest.mark.parametrize(
    "body",
    [
        "        rows = [self.inner(x[i]) for i in range(x.shape[0])]\n        return torch.stack(rows)",
        "        x = x + 1\n        return self.inner(x) * torch.ones(int(x.shape[0]), 1)",
    ],
)
def test_a_size_that_came_out_fixed_names_its_line(built, body):
    net = f"""class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x):
{body}


class Tiny(Recipe):
    backends = ships = ("onnxruntime",)
"""
    changes = (("class Tiny(Recipe):", net), ("return nn.Linear(3, 2)", "return Net()"))
    fixed = r"tiny_recipe\.py:\d+: input 'x', axis 0: 'batch' came out fixed at 2"
    with pytest.raises(ExportError, match=fixed):
        built(*changes)
