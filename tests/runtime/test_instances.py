"""What comes beside `instances`: parameters, and the name of a signature."""

import json

import pytest

from tests.runtime.test_request import ONE
from torchport_runtime.errors import BadRequest
from torchport_runtime.requests.request import InferenceRequest
from torchport_runtime.text import decode_texts

ROWS = {"instances": [[4.0], [5.0]]}


def request(body, **fields):
    return InferenceRequest({"body": body, **fields})


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("name", ["serving_default", "", "main", None])
def test_parameters_become_the_request_s_and_the_name_changes_nothing(as_bytes, name):
    body = {**ROWS, "parameters": {"k": 3, "label": "cat", "draw": True}, "signature_name": name}
    asked = request(json.dumps(body).encode() if as_bytes else body)
    assert asked.tensors(ONE)["x"].tolist() == [[4.0], [5.0]]
    assert asked.batched
    assert asked.param("k", 1, low=1, high=5) == 3
    assert asked.param("draw", 0, low=0, high=1) == 1
    assert asked.text_param("label", "") == "cat"


def test_the_query_comes_before_the_body():
    asked = request({**ROWS, "parameters": {"k": 3, "left": None}}, k="2")
    asked.tensors(ONE)
    assert asked.param("k", 1, low=1, high=5) == 2
    assert "left" not in asked.fields


def test_texts_come_with_parameters_too():
    asked = request(
        {"instances": ["a", "b"], "parameters": {"label": "x"}, "signature_name": "serving_default"}
    )
    assert decode_texts(asked) == ["a", "b"]
    assert asked.text_param("label", "") == "x"


def test_a_parameter_that_the_handler_does_not_know_is_refused():
    told_before, told_after = (
        request({**ROWS, "parameters": {"top": 3}}),
        request({**ROWS, "parameters": {"top": 3}}),
    )
    told_before.refuse_unknown_fields(["top_k"])
    with pytest.raises(BadRequest, match="unknown field 'top': did you mean 'top_k'"):
        told_before.tensors(ONE)
    told_after.tensors(ONE)
    with pytest.raises(BadRequest, match="unknown field 'top': did you mean 'top_k'"):
        told_after.refuse_unknown_fields(["top_k"])


def test_names_of_other_graphs_are_known():
    asked = request({**ROWS, "signature_name": "decoder"})
    asked.graphs = ("main", "decoder")
    assert len(asked.tensors(ONE)["x"]) == 2
