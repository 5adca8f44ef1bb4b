"""Whatever a client can get wrong is answered with what is wrong."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.api.open_inference.tensors import HUGE, VALUES, binary_input, tensor, with_bytes

pytestmark = pytest.mark.server

X = tensor()


WRONG = {
    "empty": b"",
    "no JSON": b"{",
    "no object": b"[1]",
    "no text": b'{"inputs": "\xff"}',
    "deeper than can be read": b"[" * 100_000,
    "NaN": b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [NaN, 1]}]}',
    "no inputs": {},
    "no input": {"inputs": []},
    "inputs of another kind": {"inputs": {"x": [1]}},
    "an id that is no text": {"id": 7, "inputs": [X]},
    "parameters that are none": {"parameters": [], "inputs": [X]},
    "no name": {"inputs": [{"shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]},
    "an unknown name": {"inputs": [tensor(name="z")]},
    "the same name twice": {"inputs": [X, X]},
    "too many inputs": {"inputs": [tensor(name=f"x{i}") for i in range(1001)]},
    "an unknown datatype": {"inputs": [tensor(datatype="FLOAT")]},
    "another datatype than the model's": {"inputs": [tensor([1, 2], datatype="INT64")]},
    "text": {"inputs": [tensor(["a", "b"], datatype="BYTES")]},
    "text where numbers belong": {"inputs": [tensor(["1", "2"])]},
    "true where a number belongs": {"inputs": [tensor([True, 2])]},
    "null where a number belongs": {"inputs": [tensor([None, 2])]},
    "a number where a truth belongs": {
        "parameters": {"graph": "bool"},
        "inputs": [tensor([0, 1], datatype="BOOL")],
    },
    "half a whole number": {"parameters": {"graph": "int64"}, "inputs": [tensor([0.5, 1], datatype="INT64")]},
    "below zero": {"parameters": {"graph": "uint8"}, "inputs": [tensor([-1, 1], datatype="UINT8")]},
    "more than fits": {"parameters": {"graph": "int8"}, "inputs": [tensor([128, 1], datatype="INT8")]},
    "more than 64 bits": {"parameters": {"graph": "int64"}, "inputs": [tensor([2**63, 1], datatype="INT64")]},
    "more than a float holds": {"inputs": [tensor([1e39, 1])]},
    "more than a half holds": {
        "parameters": {"graph": "float16"},
        "inputs": [tensor([65536, 1], datatype="FP16")],
    },
    "a whole number that no float holds": {"inputs": [tensor([HUGE, 1])]},
    "too many numbers": {"inputs": [tensor([1, 2, 3])]},
    "too few numbers": {"inputs": [tensor([1])]},
    "no numbers": {"inputs": [tensor([])]},
    "no data": {"inputs": [tensor(None)]},
    "data that is no array": {"inputs": [tensor(None, data=1.5)]},
    "nested otherwise than its shape": {"inputs": [tensor([[1], [2]])]},
    "nested too deep": {"inputs": [tensor([[[1], [2]]])]},
    "ragged": {"inputs": [tensor([[1, 2], [3]], (2, 2))]},
    "no shape": {"inputs": [{"name": "x", "datatype": "FP32", "data": [1, 2]}]},
    "a shape of text": {"inputs": [tensor(shape=["1", "2"])]},
    "a size below zero": {"inputs": [tensor(shape=(-1, -2))]},
    "a size of zero": {"inputs": [tensor([], shape=(0, 2))]},
    "sizes beyond all bounds": {"inputs": [tensor(shape=(2**62, 2**62))]},
    "a size that no machine knows": {"inputs": [tensor(shape=(HUGE, 2))]},
    "dimensions beyond all bounds": {"inputs": [tensor(shape=[1] * 100_000 + [2])]},
    "another shape than the model's": {"inputs": [tensor([1, 2, 3], (1, 3))]},
    "an unknown output": {"inputs": [X], "outputs": [{"name": "z"}]},
    "the same output twice": {"inputs": [X], "outputs": [{"name": "y"}, {"name": "y"}]},
    "an unknown graph": {"parameters": {"graph": "none"}, "inputs": [X]},
    "a graph that is no text": {"parameters": {"graph": 1}, "inputs": [X]},
    "a flag that is none": {"parameters": {"binary_data_output": 1}, "inputs": [X]},
    "an output's flag that is none": {
        "inputs": [X],
        "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}],
    },
    "an extension that is not there": {
        "inputs": [X],
        "outputs": [{"name": "y", "parameters": {"classification": 1}}],
    },
    "bytes that are nowhere": {"inputs": [binary_input(bytes(8), (1, 2))]},
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_request_is_said(infer, case):
    status, said = infer(WRONG[case])
    assert (status, list(said)) == (400, ["error"])
    assert 0 < len(said["error"]) < 1000


EIGHT = bytes(8)


WRONG_BYTES = {
    "fewer than the shape asks for": ({"inputs": [binary_input(EIGHT[:4], (1, 2))]}, EIGHT[:4], None),
    "more than the shape asks for": ({"inputs": [binary_input(EIGHT * 2, (1, 2))]}, EIGHT * 2, None),
    "more than there are": ({"inputs": [binary_input(EIGHT, (1, 2))]}, EIGHT[:4], None),
    "bytes that no input owns": ({"inputs": [binary_input(EIGHT, (1, 2))]}, EIGHT * 2, None),
    "a length that is no number": ({"inputs": [binary_input(EIGHT, (1, 2))]}, EIGHT, "ten"),
    "a length below zero": ({"inputs": [binary_input(EIGHT, (1, 2))]}, EIGHT, "-1"),
    "no JSON at all": ({"inputs": [binary_input(EIGHT, (1, 2))]}, EIGHT, "0"),
    "a length beyond the body": ({"inputs": [binary_input(EIGHT, (1, 2))]}, EIGHT, "99999"),
    "a length beyond all bounds": ({"inputs": [binary_input(EIGHT, (1, 2))]}, EIGHT, "9" * 5000),
    "both data and bytes": (
        {"inputs": [tensor([1, 2], parameters={"binary_data_size": 8})]},
        EIGHT,
        None,
    ),
    "a size of text": ({"inputs": [tensor(None, parameters={"binary_data_size": "8"})]}, EIGHT, None),
    "a size below zero": ({"inputs": [tensor(None, parameters={"binary_data_size": -8})]}, EIGHT, None),
    "a size beyond all bounds": (
        {"inputs": [tensor(None, parameters={"binary_data_size": HUGE})]},
        EIGHT,
        None,
    ),
    "NaN": (
        {"inputs": [binary_input(EIGHT, (1, 2))]},
        np.array([np.nan, 1], np.float32).tobytes(),
        None,
    ),
    "a truth that is neither": (
        {"parameters": {"graph": "bool"}, "inputs": [binary_input(b"\1\2", (1, 2), "BOOL")]},
        b"\1\2",
        None,
    ),
    "text": ({"inputs": [binary_input(EIGHT, (1, 2), "BYTES")]}, EIGHT, None),
}


@pytest.mark.parametrize("case", WRONG_BYTES)
def test_what_is_wrong_with_bytes_is_said(infer, case):
    request, data, length = WRONG_BYTES[case]
    body, headers = with_bytes(request, data)
    if length is not None:
        headers["Inference-Header-Content-Length"] = length
    status, said = infer(body, headers=headers)
    assert (status, list(said)) == (400, ["error"])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.lists(st.integers(-1, 3), max_size=3) | json_values,
    datatype=st.sampled_from([*VALUES, "BYTES", "BF16", ""]) | json_values,
    data=st.lists(st.floats(allow_nan=False) | st.integers(), max_size=6) | json_values,
    more=st.dictionaries(st.sampled_from(["id", "parameters", "outputs"]), json_values),
)
def test_nothing_that_a_client_sends_is_a_fault_of_the_server(infer, shape, datatype, data, more):
    given = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    status, said = infer({"inputs": [given], **more})
    assert status in (200, 400), said
