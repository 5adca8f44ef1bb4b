"""The Open Inference Protocol over REST: tensors of every datatype in and out, as JSON and as bytes."""

import json

import numpy as np
import pytest
import requests

from tests.server.api.open_inference.tensors import (
    DTYPES,
    VALUES,
    binary_input,
    tensor,
    with_bytes,
)
from tests.server.metrics import metric
from torchport.archive.model import load

pytestmark = pytest.mark.server


def test_what_the_server_and_its_models_say_of_themselves(ask):
    status, said = ask("GET", "/v2")
    assert status == 200
    assert (said["name"], said["extensions"]) == (
        "torchport",
        ["binary_tensor_data", "model_configuration", "statistics"],
    )
    assert said["version"]
    assert ask("GET", "/v2/health/live") == (200, {"live": True})
    assert ask("GET", "/v2/health/ready") == (200, {"ready": True})
    for path in ("/v2/models/linear", "/v2/models/linear/versions/1.0"):
        assert ask("GET", path) == (
            200,
            {
                "name": "linear",
                "versions": ["1.0"],
                "platform": "onnx_onnxv1",
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
            },
        )
        assert ask("GET", f"{path}/ready") == (200, {"name": "linear", "ready": True})


def test_the_handler_of_an_archive_without_a_signature_gets_the_body(ask, infer):
    status, said = ask("GET", "/v2/models/plain")
    assert (status, said["inputs"], said["outputs"], said["platform"]) == (200, [], [], "")
    asked = {"inputs": [tensor()]}
    assert infer(asked, "plain") == (200, asked)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/linear/infer", 405),
        ("PUT", "/v2/models/linear/infer", 405),
        ("POST", "/v2/models/linear", 405),
        ("POST", "/v2", 405),
        ("DELETE", "/v2/health/live", 405),
        ("POST", "/v2/health/ready", 405),
        ("POST", "/v2/models/linear/ready", 405),
        ("GET", "/v2/models/none", 404),
        ("GET", "/v2/models/none/ready", 404),
        ("POST", "/v2/models/none/infer", 404),
        ("GET", "/v2/models/linear/versions/9", 404),
        ("POST", "/v2/models/linear/versions/9/infer", 404),
        ("POST", "/v2/models/linear/explain", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/linear/versions", 404),
        ("GET", "/v2/health", 404),
        ("GET", "/v2/repository/index", 405),
        ("POST", "/v2/repository/models/linear/unload", 403),
        ("POST", "/v2/repository/models/linear", 404),
        ("GET", "/v2/models/none/stats", 404),
        ("GET", "/v2/models/linear/versions/9/config", 404),
    ],
)
def test_what_is_not_there(ask, method, path, status):
    found, said = ask(method, path)
    assert (found, list(said)) == (status, ["error"])
    assert said["error"]


def test_the_model_computes_what_its_archive_does(infer, linear_archive):
    request = {
        "id": "seven",
        "inputs": [{"name": "x", "shape": [3, 1], "datatype": "FP32", "data": [[4.0], [5.0], [-6.5]]}],
        "outputs": [{"name": "y"}],
    }
    status, said = infer(request, "linear")
    with load(linear_archive) as model:
        expected = [model.predict([x])[0] for x in (4.0, 5.0, -6.5)]
    assert status == 200
    assert (said["model_name"], said["model_version"], said["id"]) == ("linear", "1.0", "seven")
    (output,) = said["outputs"]
    assert (output["name"], output["shape"], output["datatype"]) == ("y", [3, 1], "FP32")
    # Together or one by one: float32 either way.
    np.testing.assert_allclose(output["data"], np.ravel(expected), rtol=1e-6)


@pytest.mark.parametrize("datatype", VALUES)
@pytest.mark.parametrize("nested", [False, True])
def test_json_of_every_datatype(infer, datatype, nested):
    values = VALUES[datatype]
    data = [values[:2], values[2:]] if nested else values
    request = {
        "parameters": {"graph": DTYPES[datatype]},
        "inputs": [tensor(data, (2, 2), datatype)],
    }
    status, said = infer(request)
    assert status == 200, said
    (output,) = said["outputs"]
    assert (output["datatype"], output["shape"]) == (datatype, [2, 2])
    assert output["data"] == np.array(values, DTYPES[datatype]).tolist()


def test_a_scalar(infer):
    request = {"parameters": {"graph": "scalar"}, "inputs": [tensor([2.5], [], "FP64")]}
    status, said = infer(request)
    assert (status, said["outputs"][0]["data"], said["outputs"][0]["shape"]) == (200, [2.5], [])


@pytest.mark.parametrize("datatype", VALUES)
def test_bytes_of_every_datatype_in_and_out(server, datatype):
    data = np.array(VALUES[datatype], DTYPES[datatype]).tobytes()
    request = {
        "parameters": {"graph": DTYPES[datatype], "binary_data_output": True},
        "inputs": [binary_input(data, (2, 2), datatype)],
    }
    body, headers = with_bytes(request, data)
    answer = requests.post(
        f"{server.urls['inference']}/v2/models/mirror/infer", data=body, headers=headers, timeout=30
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/octet-stream"
    length = int(answer.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(answer.content[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": len(data)}
    assert "data" not in output
    assert answer.content[length:] == data


def test_an_output_says_for_itself_whether_it_is_wanted_as_bytes(server, infer):
    data = np.array([1, 2], np.float32).tobytes()
    request = {
        "parameters": {"binary_data_output": True},
        "inputs": [binary_input(data, (1, 2))],
        "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
    }
    body, headers = with_bytes(request, data)
    status, said = infer(body, headers=headers)
    assert (status, said["outputs"][0]["data"]) == (200, [1.0, 2.0])
    wanted = {"inputs": [tensor()], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
    answer = requests.post(f"{server.urls['inference']}/v2/models/mirror/infer", json=wanted, timeout=30)
    assert answer.content.endswith(np.array([1.5, 2.5], np.float32).tobytes())


def test_an_answer_that_json_cannot_say(server, infer):
    request = {"parameters": {"graph": "nan"}, "inputs": [tensor()]}
    status, said = infer(request)
    assert status == 422
    assert "NaN" in said["error"]
    request["parameters"]["binary_data_output"] = True
    answer = requests.post(f"{server.urls['inference']}/v2/models/mirror/infer", json=request, timeout=30)
    assert np.isnan(np.frombuffer(answer.content[-8:], np.float32)).all()


def test_a_model_that_fails_is_a_500(infer):
    status, said = infer({"parameters": {"graph": "broken"}, "inputs": [tensor()]})
    assert (status, list(said)) == (500, ["error"])


def test_requests_are_counted_by_the_version_that_they_name(server, ask):
    def counted(version):
        return metric(server, "ts_inference_requests_total", model_name="linear", model_version=version)

    before = counted("1.0")
    request = {"inputs": [tensor([1.0], (1, 1))]}
    assert ask("POST", "/v2/models/linear/versions/1.0/infer", json=request)[0] == 200
    assert counted("1.0") == before + 1


def test_the_description_names_every_path(ask):
    _, described = ask("GET", "/api-description")
    paths = {path for path in described["paths"] if path.startswith("/v2")}
    models = ["/v2/models/{model_name}", "/v2/models/{model_name}/versions/{model_version}"]
    assert paths == {
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/stats",
        "/v2/repository/index",
        *(f"/v2/repository/models/{{model_name}}/{action}" for action in ("load", "unload")),
        *(f"{model}{action}" for model in models for action in ("", "/ready", "/infer", "/stats", "/config")),
    }
