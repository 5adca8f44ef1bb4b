"""TorchServe's inference service: what a handler is given, errors as statuses, sizes, streams."""

import json

import grpc
import pytest
import requests

from tests.server.grpc.calls import Code, fp32, refused
from tests.server.grpc_client import (
    INFERENCE,
    OPEN_INFERENCE,
    prediction,
)
from tests.server.metrics import metric
from tests.server.waiting import lines_with

pytestmark = pytest.mark.server


def test_the_wire_is_torchserves(server, client):
    """Bytes written by hand: the numbers of the fields are those that TorchServe's clients were made of."""
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc_inference']}") as channel:
        predictions = channel.unary_unary(f"/{INFERENCE}/Predictions")
        model, version, field = b"\x0a\x06linear", b"\x12\x031.0", b"\x1a\x0d\x0a\x04data\x12\x05[4.0]"
        answer = predictions(model + version + field, timeout=30)
        assert answer[:1] == b"\x0a"
        assert answer[2:] == client.predict("linear", data=b"[4.0]")
        ping = channel.unary_unary(f"/{INFERENCE}/Ping")
        healthy = b'{\n  "status": "Healthy"\n}'
        assert ping(b"", timeout=30) == bytes([0x0A, len(healthy)]) + healthy
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc_management']}") as channel:
        service = "/org.pytorch.serve.grpc.management.ManagementAPIsService"
        described = channel.unary_unary(f"{service}/DescribeModel")(b"\x0a\x06linear", timeout=30)
        assert b'"modelName": "linear"' in described
        register = channel.unary_unary(f"{service}/RegisterModel")
        # handler, initial_workers, model_name, synchronous, url
        asked = b"\x18\x01\x2a\x04copy\x40\x01\x4a\x10obedient-1.0.mar"
        text = b'Model "copy" Version: 1.0 registered with 1 initial workers'
        assert register(asked, timeout=60) == bytes([0x0A, len(text)]) + text
        channel.unary_unary(f"{service}/UnregisterModel")(b"\x0a\x04copy", timeout=30)


def test_a_prediction_is_the_rest_apis(server, client):
    rest = requests.post(f"{server.urls['inference']}/predictions/linear", data=b"[4.0]", timeout=30)
    assert client.predict("linear", data=b"[4.0]") == rest.content
    assert client.predict("linear", version="1.0", body=b"[4.0]") == rest.content


def test_what_the_handler_is_given(client):
    metadata = [("x-mine", "1"), ("x-bytes-bin", b"\x00\xff"), ("describe", "True"), ("explain", "True")]
    request = prediction("obedient", data=b"tell", other=b'{"a": 1}')
    said = json.loads(client.call(INFERENCE, "Predictions", request, metadata=metadata).prediction)
    # JSON is not decoded: a field of a gRPC request has no content type.
    assert said["fields"] == {"data": ["bytearray", "tell"], "other": ["bytearray", '{"a": 1}']}
    assert said["headers"]["x-mine"] == "1"
    assert said["headers"]["x-bytes-bin"] == "\x00\xff"
    # A client's word must not turn its batch mates' requests into something else.
    assert "describe" not in said["headers"]
    assert said["headers"]["explain"] == "False"


def test_errors_have_the_statuses_that_torchserves_table_gives(client, manager):
    assert "nothing" in refused(lambda: client.predict("nothing"), Code.NOT_FOUND).details()
    refused(lambda: client.predict("linear", version="9", data=b"1"), Code.NOT_FOUND)
    refused(lambda: client.predict("", data=b"1"), Code.INVALID_ARGUMENT)
    said = refused(lambda: client.predict("obedient", data=b"status 404"), Code.NOT_FOUND)
    assert said.details() == "the handler says no"
    refused(lambda: client.predict("obedient", data=b"status 418"), Code.FAILED_PRECONDITION)
    refused(lambda: client.predict("linear", data=b'"no number"'), Code.INVALID_ARGUMENT)
    said = refused(lambda: client.predict("obedient", data=b"break"), Code.UNAVAILABLE)
    assert said.details() == "Prediction failed"
    refused(lambda: manager.manage("DescribeModel", model_name="nothing"), Code.NOT_FOUND)
    refused(lambda: manager.manage("DescribeModel"), Code.INVALID_ARGUMENT)


@pytest.mark.parametrize("message", [b"\x0a\xff", b"\x0a\x02\xff\xfe", b"\x07"])
def test_a_message_that_is_none(client, message):
    refused(lambda: client.call(INFERENCE, "Predictions", message), Code.INVALID_ARGUMENT)
    refused(lambda: client.call(OPEN_INFERENCE, "ModelInfer", message), Code.INVALID_ARGUMENT)


def test_what_is_too_large(client):
    refused(lambda: client.predict("obedient", data=bytes(200_000)), Code.RESOURCE_EXHAUSTED)
    compressed = {"compression": grpc.Compression.Gzip}
    bomb = prediction("obedient", data=bytes(50_000_000))
    refused(lambda: client.call(INFERENCE, "Predictions", bomb, **compressed), Code.RESOURCE_EXHAUSTED)
    assert client.predict("obedient", data=b"size 100000") == bytes(100_000)
    said = refused(lambda: client.predict("obedient", data=b"size 100001"), Code.INTERNAL)
    assert "max_response_size" in said.details()
    long = refused(lambda: client.predict("x" * 150_000), Code.NOT_FOUND).details()
    assert len(long) < 3000


def test_an_answer_in_pieces(client):
    stream = client.method(f"/{INFERENCE}/StreamPredictions", "unary_stream")
    request = prediction("obedient", data=b"count 5")
    assert [piece.prediction for piece in stream(request, timeout=30)] == [b"0", b"1", b"2", b"3", b"4"]
    whole = stream(prediction("linear", data=b"[4.0]"), timeout=30)
    assert [piece.prediction for piece in whole] == [client.predict("linear", data=b"[4.0]")]
    broken = stream(prediction("obedient", data=b"break"), timeout=30)
    assert next(broken).prediction == b"a piece"
    refused(lambda: next(broken), Code.UNAVAILABLE)
    refused(lambda: next(stream(prediction("nothing"), timeout=30)), Code.NOT_FOUND)


def test_many_requests_on_one_stream(client):
    exchange = client.method(f"/{INFERENCE}/StreamPredictions2", "stream_stream")
    begins = {"ts_request_sequence_start": b"true"}
    asked = [
        prediction("obedient", sequence_id="a", data=b"count 3"),
        prediction("obedient", sequence_id="b", data=b"status 400"),
        prediction("obedient", data=b"tell"),
        prediction("nothing", sequence_id="c", data=b"tell"),
        prediction("obedient", sequence_id="d", data=b"tell"),
        prediction("obedient", data=b"tell", **begins),
    ]
    answers = list(exchange(iter(asked), timeout=30))
    found = [(a.sequence_id, a.status.code, a.prediction) for a in answers[:6]]
    assert found == [
        *(("a", 0, text) for text in (b"0", b"1", b"2")),
        ("b", Code.INVALID_ARGUMENT.value[0], b""),
        ("", Code.INVALID_ARGUMENT.value[0], b""),
        ("c", Code.NOT_FOUND.value[0], b""),
    ]
    assert answers[3].status.message == "the handler says no"
    assert json.loads(answers[6].prediction)["headers"]["ts_request_sequence_id"] == "d"
    assert answers[7].sequence_id
    assert len(answers) == 8


def test_requests_are_counted_and_logged(server, client):
    def counted():
        labels = {"model_name": "linear", "model_version": "1.0"}
        return metric(server, "ts_inference_requests_total", **labels)

    before = counted()
    client.predict("linear", version="1.0", data=b"[4.0]")
    client.infer(model_name="linear", model_version="1.0", inputs=[fp32([1.0], (1, 1))])
    assert counted() == before + 2
    request = prediction("linear", data=b"[4.0]")
    _, call = client.method(f"/{INFERENCE}/Predictions").with_call(request, timeout=30)
    (number,) = [value for key, value in call.trailing_metadata() if key == "x-request-id"]
    (line,) = lines_with(server.log, number)
    assert f'"gRPC /{INFERENCE}/Predictions" OK' in line
