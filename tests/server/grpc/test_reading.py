"""What is read of a message before it is there, and without copying it."""

import pytest

from torchport.server.errors import InvalidRequest
from torchport.server.grpc.messages import inference, open_inference
from torchport.server.grpc.reading import beginning_of, entry_of_map, without_field

RAW = 7
INPUT = 3


def asked(**more):
    values = {"model_name": "linear", "model_version": "1.0", "inputs": [{"name": "x", "shape": [1, 2]}]}
    request = open_inference.ModelInferRequest(**values, **more)
    return request.SerializeToString()


def test_the_first_bytes_name_the_model_and_say_where_its_tensor_begins():
    data = asked(raw_input_contents=[b"tensor" * 100])
    name, version, start = beginning_of(memoryview(data)[:80], RAW)
    assert (name, version) == ("linear", "1.0")
    assert data[start:] == b"tensor" * 100
    fields = inference.PredictionsRequest(model_name="linear", input={"data": b"a"}).SerializeToString()
    assert beginning_of(memoryview(fields), INPUT)[:2] == ("linear", "")


@pytest.mark.parametrize(
    "data", [b"", b"\x0a", b"\x0a\x06lin", b"\xff" * 30, b"\x08\x01", b"\x0a\x02\xff\xff\x3a"]
)
def test_first_bytes_that_say_nothing(data):
    assert beginning_of(memoryview(data), RAW)[0] == ""


def test_a_message_without_its_large_fields_is_the_rest():
    data = asked(raw_input_contents=[b"one", b"", b"three"], id="seven")
    rest, pieces = without_field(memoryview(data), RAW)
    assert rest == asked(id="seven")
    assert [bytes(piece) for piece in pieces] == [b"one", b"", b"three"]
    assert all(piece.obj is data for piece in pieces)
    assert without_field(memoryview(asked(raw_input_contents=[b""] * 100)), RAW) is None
    with pytest.raises(InvalidRequest):
        without_field(memoryview(data[:-1]), RAW)


def test_an_entry_of_a_map():
    assert entry_of_map(memoryview(b"\x0a\x01a\x12\x02bc")) == ("a", b"bc")
    assert entry_of_map(memoryview(b"\x12\x01b")) == ("", b"b")
    for wrong in (b"\x0a\x01\xff", b"\x0a\x05a", b"\x12\x00" * 100):
        with pytest.raises(InvalidRequest):
            entry_of_map(memoryview(wrong))
