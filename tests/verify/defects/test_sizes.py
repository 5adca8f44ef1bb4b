"""Models that go another way for some sizes, between those that everybody tries: an export that knows one way
only is caught at the others."""

import pytest

from tests.verify.defects.conftest import Model
from tests.verify.defects.failures import says

TIMED = {
    "inputs": {"x": '"float32", ("batch", "time", 8)'},
    "outputs": {"y": '"float32", ("batch", 8)'},
    "dims": {"batch": (1, 4), "time": (1, 50)},
    "sizes": {"batch": 3, "time": 10},
}

BRANCHES = {
    "a multiple of four": ("y = x.mean(1) * (2 if x.shape[1] % 4 == 0 else 1)", "% 4 != 0"),
    "one length": ("y = x.mean(1) * (2 if x.shape[1] == 7 else 1)", "!= 7"),
    "a window of lengths": ("y = x.mean(1) * (2 if 27 <= x.shape[1] < 48 else 1)", "<= 26"),
    "padding to a multiple": (
        "r = x.shape[1] % 4\n"
        "if r != 0:\n"
        "    x = F.pad(x, (0, 0, 0, 4 - r))\n"
        "y = x.reshape(x.shape[0], -1, 4, 8).sum(2).amax(1)",
        "% 4 != 0",
    ),
    "the product of two sizes": ("y = x.mean(1) * (2 if x.shape[0] * x.shape[1] == 96 else 1)", "!= 96"),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_on_a_size_is_caught_with_what_was_taken_for_granted(verified, name):
    right, guard = BRANCHES[name]
    result = verified(Model(right=right, backends=("onnxruntime",), **TIMED))
    says(result.failures, "onnxruntime on cpu, graph main", "captured where", guard, "output 'y'", "exceeds")


def test_an_export_that_knows_both_ways_passes_where_the_other_fails(verified):
    branch = "if x.shape[1] % 4 == 0:\n    y = x.mean(1) * 2\nelse:\n    y = x.mean(1)"
    model = Model(right=branch, backends=("onnxruntime", "torchscript"), torchscript="script", **TIMED)
    result = verified(model)
    assert {r["backend"]: r["passed"] for r in result.certificate["results"]} == {
        "onnxruntime": False,
        "torchscript": True,
    }
