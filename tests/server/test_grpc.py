"""gRPC: TorchServe's services and the Open Inference Protocol's, errors as statuses, streams, deadlines,
cancelled calls, keys, TLS, the end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial

import grpc
import numpy as np
import pytest
import requests
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.server.archives import write_archive
from tests.server.grpc_client import (
    INFERENCE,
    MANAGEMENT,
    OPEN_INFERENCE,
    Client,
    prediction,
    write_certificates,
)
from torchport.errors import ServerError
from torchport.loading import load
from torchport.server.grpc_messages import inference, management, open_inference
from torchport.server_process import start
from torchport.store import Store, read_json

Code = grpc.StatusCode

# Does what the field `data` says. Pieces are written as TorchServe's workers write them.
OBEDIENT = """
    import json
    import struct
    import time
    from pathlib import Path


    def piece(request_id, body):
        def chunk(data):
            return struct.pack("!i", len(data)) + data

        row = chunk(request_id.encode()) + chunk(b"") + struct.pack("!i", 200) + chunk(b"")
        return struct.pack("!i", 200) + chunk(b"") + row + struct.pack("!i", 0) + chunk(body) + b"\\xff" * 4


    def obey(row, index, context):
        verb, _, rest = bytes(row["data"]).decode().partition(" ")
        if verb == "count":
            for number in range(int(rest) - 1):
                context.cl_socket.sendall(piece(context.get_request_id(index), str(number).encode()))
            return str(int(rest) - 1)
        if verb == "break":
            context.cl_socket.sendall(piece(context.get_request_id(index), b"a piece"))
            raise ValueError("broken")
        if verb == "hold":
            Path(rest + ".held").touch()
            while not Path(rest).exists():
                time.sleep(0.01)
            return "held"
        if verb == "note":
            path, text = rest.split()
            with open(path, "a") as file:
                file.write(text + "\\n")
            return "noted"
        if verb == "status":
            context.set_response_status(code=int(rest), phrase="no", idx=index)
            return {"code": int(rest), "message": "the handler says no"}
        if verb == "size":
            return bytes(int(rest))
        return {
            "fields": {name: [type(value).__name__, bytes(value).decode()] for name, value in row.items()},
            "headers": context.get_all_request_header(index),
        }


    def handle(data, context):
        return data and [obey(row, index, context) for index, row in enumerate(data)]
"""

ONE_WORKER = {"minWorkers": 1, "maxWorkers": 1}


@pytest.fixture(scope="module")
def store(linear_archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpc") / "store"
    folder.mkdir()
    shutil.copy(linear_archive, folder)
    write_archive(folder, "obedient", OBEDIENT, config=ONE_WORKER)
    write_archive(folder, "bare", OBEDIENT)
    write_archive(folder, "narrow", OBEDIENT, config={**ONE_WORKER, "jobQueueSize": 1})
    return Store(folder)


@pytest.fixture(scope="module")
def server(store, tmp_path_factory):
    settings = {
        "enable_model_api": "true",
        "max_request_size": "200000",
        "max_response_size": "100000",
        "access_log": "true",
    }
    with start(store, tmp_path_factory.mktemp("run"), settings=settings) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc_inference']}") as channel:
        yield Client(channel)


@pytest.fixture(scope="module")
def manager(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc_management']}") as channel:
        yield Client(channel)


@pytest.fixture
def hold(client, tmp_path):
    """Occupy the one worker of a model until `release` is called; the call that does it."""
    gate = tmp_path / "gate"

    class Hold:
        def __call__(self, model):
            method = client.method(f"/{INFERENCE}/Predictions")
            call = method.future(prediction(model, data=b"hold %s" % str(gate).encode()), timeout=60)
            wait_for(lambda: (tmp_path / "gate.held").exists())
            return call

        def release(self):
            gate.touch()

    hold = Hold()
    yield hold
    hold.release()


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "that did not happen"
        time.sleep(0.01)


def metric(server, name, **labels):
    """The sum of a metric's samples with these labels."""
    text = requests.get(f"{server.urls['metrics']}/metrics", timeout=10).text
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    return sum(float(line.split()[-1]) for line in lines if all(label in line for label in wanted))


def refused(call, code):
    """The error with which a call ends."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is code, caught.value.details()
    return caught.value


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


def test_a_deadline_is_the_requests_own(server, client, hold):
    holding = hold("obedient")
    before = metric(server, "torchport_expired_requests_total", model_name="obedient")
    request = prediction("obedient", data=b"tell")
    late = client.method(f"/{INFERENCE}/Predictions").future(request, timeout=0.3)
    assert late.exception(30).code() is Code.DEADLINE_EXCEEDED
    expired = partial(metric, server, "torchport_expired_requests_total", model_name="obedient")
    wait_for(lambda: expired() == before + 1)
    assert metric(server, "torchport_queue_length", model_name="obedient") == 0
    hold.release()
    assert holding.result(30).prediction == b"held"


def test_a_request_whose_call_was_cancelled_never_reaches_a_worker(server, client, hold, tmp_path):
    notes = tmp_path / "notes"
    holding = hold("obedient")
    method = client.method(f"/{INFERENCE}/Predictions")
    stream = client.method(f"/{INFERENCE}/StreamPredictions", "unary_stream")
    note = prediction("obedient", data=f"note {notes} cancelled".encode())
    calls = [method.future(note, timeout=60), stream(note, timeout=60)]
    wait_for(lambda: metric(server, "torchport_queue_length", model_name="obedient") == 2)
    before = server.log().count("CANCELLED")
    for call in calls:
        call.cancel()
    wait_for(lambda: server.log().count("CANCELLED") == before + 2)
    last = method.future(prediction("obedient", data=f"note {notes} last".encode()), timeout=60)
    hold.release()
    assert holding.result(30).prediction == b"held"
    assert last.result(30).prediction == b"noted"
    assert notes.read_text() == "last\n"


def test_a_full_queue_says_when_to_come_again(server, client, hold):
    holding = hold("narrow")
    method = client.method(f"/{INFERENCE}/Predictions")
    waiting = method.future(prediction("narrow", data=b"tell"), timeout=60)
    wait_for(lambda: metric(server, "torchport_queue_length", model_name="narrow") == 1)
    full = refused(lambda: client.predict("narrow", data=b"tell"), Code.UNAVAILABLE)
    assert dict(full.trailing_metadata())["retry-after"] == "1"
    hold.release()
    assert holding.result(30).prediction == b"held"
    assert waiting.result(30).prediction


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
    line = next(line for line in server.log().splitlines() if number in line)
    assert f'"gRPC /{INFERENCE}/Predictions" OK' in line


# Management.


def test_models_come_and_go(server, client, manager):
    said = manager.manage("RegisterModel", url="bare-1.0.mar", model_name="second")
    assert "registered with 0 initial workers" in said
    refused(lambda: client.predict("second", data=b"tell"), Code.UNAVAILABLE)
    assert manager.manage("ScaleWorker", model_name="second") == "Processing worker updates..."
    said = manager.manage("ScaleWorker", model_name="second", min_worker=1, max_worker=2, synchronous=True)
    assert said == "Workers scaled to 1 for model: second"
    assert client.predict("second", data=b"count 1") == b"0"
    assert manager.manage("SetDefault", model_name="second", model_version="1.0") == (
        'Default version successfully updated for model "second" to "1.0"'
    )
    (described,) = json.loads(manager.manage("DescribeModel", model_name="second", model_version="1.0"))
    assert (described["minWorkers"], described["maxWorkers"]) == (1, 2)
    listed = json.loads(manager.manage("ListModels"))
    assert [m["modelName"] for m in listed["models"]] == ["bare", "linear", "narrow", "obedient", "second"]
    page = json.loads(manager.manage("ListModels", limit=2, next_page_token=1))
    assert [m["modelName"] for m in page["models"]] == ["linear", "narrow"]
    assert manager.manage("UnregisterModel", model_name="second") == 'Model "second" unregistered'
    refused(lambda: client.predict("second", data=b"tell"), Code.NOT_FOUND)


def test_a_description_may_ask_the_handler_too(manager):
    (described,) = json.loads(manager.manage("DescribeModel", model_name="linear", customized=True))
    assert described["modelName"] == "linear"


@pytest.mark.parametrize(
    ("name", "values", "code"),
    [
        ("RegisterModel", {}, Code.INVALID_ARGUMENT),
        ("RegisterModel", {"url": "none.mar"}, Code.NOT_FOUND),
        ("RegisterModel", {"url": "linear-1.0.mar"}, Code.ABORTED),
        ("ScaleWorker", {"model_name": "linear", "min_worker": 2, "max_worker": 1}, Code.INVALID_ARGUMENT),
        ("ScaleWorker", {"model_name": "linear", "min_worker": 2**31 - 1}, Code.INVALID_ARGUMENT),
        ("ScaleWorker", {"model_name": "none"}, Code.NOT_FOUND),
        ("ScaleWorker", {}, Code.INVALID_ARGUMENT),
        ("SetDefault", {"model_name": "linear"}, Code.INVALID_ARGUMENT),
        ("SetDefault", {"model_name": "linear", "model_version": "9"}, Code.NOT_FOUND),
        ("UnregisterModel", {}, Code.INVALID_ARGUMENT),
        ("UnregisterModel", {"model_name": "linear", "model_version": "9"}, Code.NOT_FOUND),
        # Not a path of the REST API by way of a name.
        ("UnregisterModel", {"model_name": "linear/1.0"}, Code.NOT_FOUND),
        ("DescribeModel", {"model_name": "linear?limit=1"}, Code.NOT_FOUND),
    ],
)
def test_what_management_refuses(client, manager, name, values, code):
    refused(lambda: manager.manage(name, **values), code)
    assert client.predict("linear", data=b"[4.0]")


def test_workers_that_do_not_start_are_told_of(manager, store):
    write_archive(store.path, "sick", "raise ValueError('sick ' + 'x' * 20000)")
    try:
        asked = {"url": "sick-1.0.mar", "initial_workers": 1, "synchronous": True}
        said = refused(lambda: manager.manage("RegisterModel", **asked), Code.INTERNAL)
    finally:
        (store.path / "sick-1.0.mar").unlink()
    assert said.details().startswith("Failed to start workers for model sick")
    assert len(said.details()) < 3000


# The Open Inference Protocol.


def fp32(values, shape, name="x"):
    return {"name": name, "datatype": "FP32", "shape": shape, "contents": {"fp32_contents": values}}


@pytest.mark.parametrize(
    "service", [OPEN_INFERENCE, "org.pytorch.serve.grpc.openinference.GRPCInferenceService"]
)
def test_both_names_of_the_protocols_service(server, service):
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc_inference']}") as channel:
        metadata = channel.unary_unary(f"/{service}/ModelMetadata")(b"\x0a\x06linear", timeout=30)
    found = open_inference.ModelMetadataResponse.FromString(metadata)
    assert (found.name, list(found.versions), found.platform) == ("linear", ["1.0"], "onnx_onnxv1")
    for tensors, name in ((found.inputs, "x"), (found.outputs, "y")):
        (tensor,) = tensors
        assert (tensor.name, tensor.datatype, list(tensor.shape)) == (name, "FP32", [-1, 1])


def test_what_the_server_says_of_itself(client):
    messages = open_inference
    assert client.call(OPEN_INFERENCE, "ServerLive", messages.ServerLiveRequest()).live
    assert client.call(OPEN_INFERENCE, "ServerReady", messages.ServerReadyRequest()).ready
    assert client.call(OPEN_INFERENCE, "ModelReady", messages.ModelReadyRequest(name="linear")).ready
    assert client.call(OPEN_INFERENCE, "ServerMetadata", messages.ServerMetadataRequest()).name == "torchport"
    unknown = messages.ModelReadyRequest(name="nothing")
    refused(lambda: client.call(OPEN_INFERENCE, "ModelReady", unknown), Code.NOT_FOUND)


def test_tensors_in_fields_and_in_bytes(client, linear_archive):
    values = np.array([[4.0], [5.0], [-6.5]], np.float32)
    with load(linear_archive) as model:
        expected = [model.predict([float(x)])[0] for (x,) in values]
    fields = client.infer(model_name="linear", id="seven", inputs=[fp32(values.ravel(), (3, 1))])
    assert (fields.model_name, fields.model_version, fields.id) == ("linear", "1.0", "seven")
    (output,) = fields.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", "FP32", [3, 1])
    # Together or one by one: float32 either way.
    np.testing.assert_allclose(output.contents.fp32_contents, np.ravel(expected), rtol=1e-6)
    assert not fields.raw_output_contents
    raw = client.infer(
        model_name="linear",
        inputs=[{"name": "x", "datatype": "FP32", "shape": (3, 1)}],
        raw_input_contents=[values.tobytes()],
        outputs=[{"name": "y"}],
    )
    assert not raw.outputs[0].HasField("contents")
    (data,) = raw.raw_output_contents
    np.testing.assert_array_equal(np.frombuffer(data, np.float32), output.contents.fp32_contents)


parameter = open_inference.InferParameter
X = fp32([1.0], (1, 1))
RAW = {"name": "x", "datatype": "FP32", "shape": (1, 1)}
WRONG = {
    "no model": {"model_name": "", "inputs": [X]},
    "no inputs": {},
    "an unknown input": {"inputs": [fp32([1.0], (1, 1), name="z")]},
    "an input twice": {"inputs": [X, X]},
    "an unknown datatype": {"inputs": [{**X, "datatype": "FLOAT"}]},
    "text": {"inputs": [{**X, "datatype": "BYTES", "contents": {"bytes_contents": [b"a"]}}]},
    "another datatype": {"inputs": [{**X, "datatype": "INT64", "contents": {"int64_contents": [1]}}]},
    "values in another field": {"inputs": [{**X, "contents": {"fp64_contents": [1.0]}}]},
    "halves in fields": {"inputs": [{**X, "datatype": "FP16"}]},
    "more than fits": {"inputs": [{**X, "datatype": "INT8", "contents": {"int_contents": [128]}}]},
    "NaN": {"inputs": [fp32([float("nan")], (1, 1))]},
    "too few values": {"inputs": [fp32([], (1, 1))]},
    "too many values": {"inputs": [fp32([1.0, 2.0], (1, 1))]},
    "a size below zero": {"inputs": [fp32([1.0], (-1, -1))]},
    "a size of zero": {"inputs": [fp32([], (0, 1))]},
    "sizes beyond all bounds": {"inputs": [fp32([1.0], (2**62, 2**62))]},
    "dimensions beyond all bounds": {"inputs": [fp32([1.0], [1] * 1000)]},
    "fewer bytes than inputs": {"inputs": [RAW, {**RAW, "name": "z"}], "raw_input_contents": [bytes(4)]},
    "bytes that do not fit the shape": {"inputs": [RAW], "raw_input_contents": [bytes(5)]},
    "bytes of NaN": {"inputs": [RAW], "raw_input_contents": [np.float32("nan").tobytes()]},
    "fields beside bytes": {"inputs": [X], "raw_input_contents": [bytes(4)]},
    "an unknown output": {"inputs": [X], "outputs": [{"name": "z"}]},
    "an output twice": {"inputs": [X], "outputs": [{"name": "y"}, {"name": "y"}]},
    "an unknown graph": {"inputs": [X], "parameters": {"graph": parameter(string_param="none")}},
    "a graph that is no text": {"inputs": [X], "parameters": {"graph": parameter(int64_param=1)}},
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_tensors_is_said(client, case):
    said = refused(lambda: client.infer(**{"model_name": "linear", **WRONG[case]}), Code.INVALID_ARGUMENT)
    assert 0 < len(said.details()) < 1000


# Health, keys, TLS, addresses, the end.


@pytest.mark.parametrize("port", ["grpc_inference", "grpc_management"])
def test_health_checks(server, port):
    with grpc.insecure_channel(f"127.0.0.1:{server.ports[port]}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        unknown = health_pb2.HealthCheckRequest(service="nothing")
        refused(lambda: health.Check(unknown, timeout=30), Code.NOT_FOUND)
        watch = health.Watch(unknown, timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


def test_an_ending_server_says_so_and_answers_what_it_took(store, tmp_path):
    gate = tmp_path / "gate"
    health, serving = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
    with start(store, tmp_path / "run") as server:
        address = f"127.0.0.1:{server.ports['grpc_inference']}"
        with grpc.insecure_channel(address) as channel:
            client, stub = Client(channel), health_pb2_grpc.HealthStub(channel)
            idle = iter(lambda: time.sleep(60), None)  # A client that sends nothing, and does not hang up.
            exchange = client.method(f"/{INFERENCE}/StreamPredictions2", "stream_stream")(idle, timeout=60)
            watch = stub.Watch(health(), timeout=60)
            assert next(watch).status == serving.SERVING
            request = prediction("obedient", data=b"hold %s" % str(gate).encode())
            held = client.method(f"/{INFERENCE}/Predictions").future(request, timeout=60)
            wait_for(lambda: (tmp_path / "gate.held").exists())
            os.kill(server.pid, signal.SIGTERM)
            assert next(watch).status == serving.NOT_SERVING
            assert stub.Check(health(), timeout=30).status == serving.NOT_SERVING
            ready = client.call(OPEN_INFERENCE, "ServerReady", open_inference.ServerReadyRequest())
            assert not ready.ready
            assert "Unhealthy" in client.call(INFERENCE, "Ping", inference.Empty()).health
            gate.touch()
            assert held.result(30).prediction == b"held"
            assert list(watch) == []
            refused(lambda: next(exchange), Code.UNAVAILABLE)
        assert server.process.wait(30) == 0
    assert "Traceback" not in server.log()


@contextmanager
def guarded(store, run, **settings):
    """A server that `start` cannot ask for its health: it wants a key, or a certificate. Its ports."""
    run.mkdir()
    ports = {f"grpc_{name}_port": "0" for name in ("inference", "management")}
    scheme = "https" if "client_ca_file" in settings else "http"
    addresses = {
        f"{name}_address": f"{scheme}://127.0.0.1:0" for name in ("inference", "management", "metrics")
    }
    settings = {**ports, **addresses, "load_models": "linear-1.0.mar", **settings}
    lines = [f"{key}={value}\n" for key, value in {"model_store": store.path, **settings}.items()]
    (run / "config.properties").write_text("".join(lines))
    command = ["-m", "torchport", "serve", "--ncs", "--ts-config", run / "config.properties", "--run", run]
    with (run / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: (read_json(run / "server.json", "loaded") or {}).get("loaded"))
        yield read_json(run / "server.json", "grpc_inference", "grpc_management")
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls") / "certificates"
    write_certificates(folder)
    return folder


def tls(folder):
    return {
        "enable_grpc_ssl": "true",
        "certificate_file": folder / "server.pem",
        "private_key_file": folder / "server.key",
    }


def test_keys_over_tls(store, certificates, tmp_path):
    keys = tmp_path / "keys.json"
    settings = {"disable_token_authorization": "false", "key_file": keys, **tls(certificates)}
    with guarded(store, tmp_path / "run", **settings) as ports:
        trusted = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes())
        found = json.loads(keys.read_text())
        key = {
            name: [("authorization", f"Bearer {found[name]['key']}")] for name in ("inference", "management")
        }
        with (
            grpc.secure_channel(f"127.0.0.1:{ports['grpc_inference']}", trusted) as channel,
            grpc.secure_channel(f"127.0.0.1:{ports['grpc_management']}", trusted) as managing,
        ):
            client, manager, request = Client(channel), Client(managing), prediction("linear", data=b"[4.0]")
            metadata = open_inference.ModelMetadataRequest(name="linear")
            stream = client.method(f"/{INFERENCE}/StreamPredictions", "unary_stream")
            for given in ([], key["management"], [("authorization", "Bearer ")], [("authorization", "x")]):
                for call in (
                    partial(client.call, INFERENCE, "Predictions", request, metadata=given),
                    partial(client.call, OPEN_INFERENCE, "ModelMetadata", metadata, metadata=given),
                    partial(next, stream(request, metadata=given, timeout=30)),
                ):
                    refused(call, Code.UNAUTHENTICATED)
            assert client.call(INFERENCE, "Predictions", request, metadata=key["inference"]).prediction
            listing = management.ListModelsRequest()
            for given in ([], key["inference"]):
                call = partial(manager.call, MANAGEMENT, "ListModels", listing, metadata=given)
                refused(call, Code.UNAUTHENTICATED)
            listed = manager.call(MANAGEMENT, "ListModels", listing, metadata=key["management"])
            assert "linear" in listed.msg
            # Without enable_model_api nothing comes or goes.
            for name, change in (
                ("RegisterModel", management.RegisterModelRequest(url="linear-1.0.mar")),
                ("UnregisterModel", management.UnregisterModelRequest(model_name="linear")),
            ):
                call = partial(manager.call, MANAGEMENT, name, change, metadata=key["management"])
                refused(call, Code.PERMISSION_DENIED)
            # Who probes a container has no key.
            stub = health_pb2_grpc.HealthStub(channel)
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=30).status
        with grpc.insecure_channel(f"127.0.0.1:{ports['grpc_inference']}") as channel:
            refused(lambda: Client(channel).predict("linear", data=b"[4.0]"), Code.UNAVAILABLE)


def test_clients_with_certificates_only(store, certificates, tmp_path):
    settings = {**tls(certificates), "client_ca_file": certificates / "ca.pem"}
    authority, mine, key = (
        (certificates / name).read_bytes() for name in ("ca.pem", "client.pem", "client.key")
    )
    with guarded(store, tmp_path / "run", **settings) as ports:
        address = f"127.0.0.1:{ports['grpc_inference']}"
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, mine)) as channel:
            assert Client(channel).predict("linear", data=b"[4.0]")
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(authority)) as channel:
            refused(lambda: Client(channel).predict("linear", data=b"[4.0]"), Code.UNAVAILABLE)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"enable_grpc_ssl": "true"}, "enable_grpc_ssl needs certificate_file"),
        (
            {"enable_grpc_ssl": "true", "certificate_file": "none.pem", "private_key_file": "none.key"},
            "cannot be read",
        ),
        (
            {"enable_grpc_ssl": "true", "certificate_file": __file__, "private_key_file": __file__},
            "cannot be read",
        ),
    ],
)
def test_a_server_that_cannot_have_its_tls_does_not_start(store, tmp_path, settings, said):
    with pytest.raises(ServerError, match=said):
        start(store, tmp_path / "run", settings={"load_models": "none", **settings})


def test_open_grpc_beside_an_api_that_asks_clients_for_certificates_is_refused(store, certificates, tmp_path):
    guard = {**tls(certificates), "enable_grpc_ssl": "false", "client_ca_file": str(certificates / "ca.pem")}
    guard |= {f"{name}_address": "https://127.0.0.1:0" for name in ("inference", "management", "metrics")}
    with pytest.raises(ServerError, match="gRPC without TLS has none"):
        start(store, tmp_path / "run", settings={**guard, "grpc_inference_address": "0.0.0.0"})


def test_a_port_that_is_taken_is_an_error(server, store, tmp_path):
    settings = {"grpc_inference_port": str(server.ports["grpc_inference"]), "load_models": "none"}
    with pytest.raises(ServerError, match=r"gRPC cannot listen .* grpc_inference_port"):
        start(store, tmp_path / "run", settings=settings)
