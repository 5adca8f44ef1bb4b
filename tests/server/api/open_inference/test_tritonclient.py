"""Triton's own clients go through the protocol, by HTTP and gRPC.

They need an older protobuf than the locked one by their own account, so that no extra installs them.
"""

import numpy as np
import pytest

from tests.server.api.open_inference.test_repository import controlled as controlled

pytestmark = pytest.mark.server

REASON = "needs tritonclient, whose protobuf is older than the locked one: pip install --target it"
http = pytest.importorskip("tritonclient.http", reason=REASON)
rpc = pytest.importorskip("tritonclient.grpc", reason=REASON)
errors = pytest.importorskip("tritonclient.utils", reason=REASON)

VALUES = np.arange(4000, dtype=np.float32).reshape(-1, 1)


@pytest.fixture(scope="module", params=["http", "grpc"])
def triton(request, controlled):
    """The clients' module, and a client."""
    if request.param == "http":
        address = controlled.urls["inference"].removeprefix("http://")
        with http.InferenceServerClient(address) as client:
            yield http, client
        return
    with rpc.InferenceServerClient(f"127.0.0.1:{controlled.ports['grpc_inference']}") as client:
        yield rpc, client


def told(module, method, *arguments):
    return method(*arguments, as_json=True) if module is rpc else method(*arguments)


def asked(module, values=VALUES, **how):
    given = module.InferInput("x", list(values.shape), "FP32")
    given.set_data_from_numpy(values, **how)
    return [given]


def test_health_and_metadata(triton):
    module, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear")
    assert client.is_model_ready("linear", "1.0")
    assert "model_repository" in told(module, client.get_server_metadata)["extensions"]
    assert told(module, client.get_model_metadata, "linear")["inputs"][0]["datatype"] == "FP32"
    config = told(module, client.get_model_config, "linear")
    config = config.get("config", config)
    assert config["input"][0]["data_type"] == "TYPE_FP32"


def test_inference_in_every_form(triton):
    module, client = triton
    forms = [{"binary_data": True}, {"binary_data": False}] if module is http else [{}]
    answers = [client.infer("linear", asked(module, **how)).as_numpy("y") for how in forms]
    outputs = [module.InferRequestedOutput("y")]
    answers.append(client.infer("linear", asked(module), model_version="1.0", outputs=outputs).as_numpy("y"))
    if module is http:
        for algorithm in ("gzip", "deflate"):
            answer = client.infer(
                "linear",
                asked(module),
                request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
            )
            assert answer.get_response()["model_name"] == "linear"
            answers.append(answer.as_numpy("y"))
        answers.append(client.async_infer("linear", asked(module)).get_result().as_numpy("y"))
    else:
        for algorithm in ("gzip", "deflate"):
            answer = client.infer("linear", asked(module), compression_algorithm=algorithm)
            answers.append(answer.as_numpy("y"))
    for answer in answers:
        # In batches of other sizes: float32 either way.
        np.testing.assert_allclose(answer, answers[0], rtol=1e-6)
    assert answers[0].shape == VALUES.shape


def test_the_repository(triton):
    module, client = triton

    def states():
        index = told(module, client.get_model_repository_index)
        return {model["name"]: model["state"] for model in (index["models"] if module is rpc else index)}

    client.load_model("plain")
    assert states()["plain"] == "READY"
    client.unload_model("plain")
    assert states()["plain"] == "UNAVAILABLE"
    found = told(module, client.get_inference_statistics, "linear")["model_stats"]
    assert [model["name"] for model in found] == ["linear"]
    assert told(module, client.get_inference_statistics)["model_stats"]


def test_errors_are_read_by_the_clients(triton):
    module, client = triton
    with pytest.raises(errors.InferenceServerException, match="Model not found: nobody"):
        client.infer("nobody", asked(module))
    with pytest.raises(errors.InferenceServerException, match="nobody is not in the store"):
        client.load_model("nobody")
    given = module.InferInput("x", [1], "BYTES")
    given.set_data_from_numpy(np.array([b"a"], dtype=np.object_))
    with pytest.raises(errors.InferenceServerException, match="BYTES"):
        client.infer("linear", [given])


@pytest.mark.parametrize(
    "name",
    [
        "get_trace_settings",
        "get_log_settings",
        "get_system_shared_memory_status",
        "get_cuda_shared_memory_status",
    ],
)
def test_extensions_that_are_not_there_are_errors_too(triton, name):
    _, client = triton
    with pytest.raises(errors.InferenceServerException):
        getattr(client, name)()
