"""The Open Inference Protocol over gRPC: tensors in fields and in bytes, and what is wrong with them."""

import grpc
import numpy as np
import pytest

from tests.server.grpc.calls import Code, fp32, refused
from tests.server.grpc_client import (
    OPEN_INFERENCE,
)
from torchport.archive.model import load
from torchport.server.grpc.messages import open_inference

pytestmark = pytest.mark.server


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
