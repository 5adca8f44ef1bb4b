import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchport_runtime import BadRequest, InferenceRequest, Signature, SignatureError, TensorSpec

ONE = Signature(
    inputs={"x": TensorSpec("float32", ("batch", 1))}, outputs={"y": TensorSpec("float32", ("batch", 1))}
)
TWO = Signature(
    inputs={"ids": TensorSpec("int64", ("batch", 2)), "mask": TensorSpec("bool", ("batch", 2))},
    outputs={"y": TensorSpec("float32", ("batch",))},
)


def tensors(body, signature=ONE, **fields):
    return InferenceRequest({"body": body, **fields}).tensors(signature)


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        ([4.0], [[4.0]]),
        (b"[4.0]", [[4.0]]),
        ("[4]", [[4.0]]),
        ({"x": [4.0]}, [[4.0]]),
        ([[4.0], [5.0]], [[4.0], [5.0]]),
        ({"x": [[4.0], [5.0]]}, [[4.0], [5.0]]),
        ({"instances": [[4.0], [5.0]]}, [[4.0], [5.0]]),
        ({"instances": [{"x": [4.0]}, {"x": [5.0]}]}, [[4.0], [5.0]]),
    ],
)
def test_ways_to_send_rows(body, rows):
    x = tensors(body)["x"]
    assert x.dtype == np.float32
    assert x.tolist() == rows


def test_a_single_row_is_not_batched():
    one, several = InferenceRequest({"body": [4.0]}), InferenceRequest({"body": [[4.0]]})
    one.tensors(ONE)
    several.tensors(ONE)
    assert (one.batched, several.batched) == (False, True)


def test_several_inputs_come_by_name():
    named = tensors({"ids": [1, 2], "mask": [True, False]}, TWO)
    assert named["ids"].dtype == np.int64
    assert named["mask"].dtype == np.bool_


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (None, "no body"),
        (b"", "no body"),
        (b"{bad", "not JSON: .* at line 1 column 2"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[NaN]", "NaN in the body"),
        ([float("nan")], "NaN or Inf"),
        ([1e300], "too great a number"),
        (b"[1e999]", "NaN or Inf"),
        (["4"], "text, null or an object"),
        ([None], "text, null or an object"),
        ([True], "true and false for numbers"),
        ([10**30, "a"], "text, null or an object"),
        ([2**200], "too great a number"),
        ([10**400], "too great a number"),
        ([[4.0], [5.0, 6.0]], "different lengths"),
        ([], "0 rows"),
        ({"instances": []}, "at least one row"),
        ({"instances": 4}, "at least one row"),
        ({"instances": [[4.0]], "x": 1}, "nothing else"),
        ({"instances": [[4.0]], "parameters": [1]}, "'parameters' is to be an object"),
        ({"instances": [[4.0]], "parameters": {"k": [1]}}, "parameter 'k': a number"),
        ({"instances": [[4.0]], "parameters": {"body": "x"}}, "the body's own name"),
        ({"instances": [[4.0]], "signature_name": "man"}, "signature_name 'man': did you mean 'main'"),
        ({"instances": [[4.0]], "signature_name": 7}, "signature_name '7'"),
        ({"y": [4.0]}, "unknown input 'y'"),
        ({}, "'x' is missing"),
        ([[[4.0]]], "expected float32"),
        (b"[" * 100_000, "nested too deep"),
        (b"[1" + b"0" * 5000 + b"]", "too long"),
    ],
)
def test_bad_bodies_say_what_is_wrong(body, reason):
    with pytest.raises(BadRequest, match=reason) as caught:
        tensors(body)
    assert caught.value.http_status == 400


def test_a_body_lost_to_a_form_says_how_to_send_it():
    with pytest.raises(BadRequest, match="Content-Type: application/json"):
        InferenceRequest({"[4.0]": b""}).tensors(ONE)


@pytest.mark.parametrize("value", [[1.5, 2], [2**63, 0], [-(2**70), 0]])
def test_integers_must_be_whole_and_fit(value):
    with pytest.raises(BadRequest):
        tensors({"ids": value, "mask": [True, False]}, TWO)


def test_rows_of_one_input_and_a_row_of_another_are_refused():
    with pytest.raises(BadRequest, match="the same of each"):
        tensors({"ids": [[1, 2]], "mask": [True, False]}, TWO)


@pytest.mark.parametrize(("given_k", "wanted"), [("3", 3), (b"3", 3), (None, 5)])
def test_parameters_are_whole_numbers(given_k, wanted):
    fields = {"body": b"x"} | ({"k": given_k} if given_k is not None else {})
    assert InferenceRequest(fields).param("k", 5, low=1, high=10) == wanted


@pytest.mark.parametrize("wrong", ["0", "11", "three", "", "3.5", "1_0", " 3", "\uff13"])
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(BadRequest, match="whole number from 1 to 10"):
        InferenceRequest({"body": b"x", "k": wrong}).param("k", 5, low=1, high=10)


def test_file_bodies_as_bytes_and_base64():
    assert InferenceRequest({"data": bytearray(b"\x89PNG")}).content == b"\x89PNG"
    assert InferenceRequest({"body": {"b64": "aGk="}}).content == b"hi"
    assert InferenceRequest({"body": b'{"b64": "aGk="}'}).content == b"hi"
    for wrong in ({"b64": "a"}, {"b64": 3}, [1], "not base64!"):
        with pytest.raises(BadRequest):
            _ = InferenceRequest({"body": wrong}).content


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=12,
)


@given(JSON | st.builds(lambda rows: {"instances": rows}, JSON) | st.builds(lambda v: {"x": v}, JSON))
def test_no_json_ends_in_anything_but_tensors_or_a_reason(body):
    try:
        found = tensors(body)
        ONE.check_inputs(found, any_batch=True)
    except (BadRequest, SignatureError) as err:
        assert 400 <= err.http_status < 500


@given(st.binary(max_size=64))
def test_no_bytes_end_in_anything_but_tensors_or_a_reason(body):
    try:
        found = tensors(body)
        ONE.check_inputs(found, any_batch=True)
    except (BadRequest, SignatureError) as err:
        assert 400 <= err.http_status < 500


@pytest.mark.parametrize("name", ['{"x": [1, 2]}', "[4.0]"])
def test_json_that_came_as_a_form_is_told_how_to_come(name):
    with pytest.raises(BadRequest, match=r"curl -d .* --json"):
        InferenceRequest({name: b""}).refuse_unknown_fields(["output"])
