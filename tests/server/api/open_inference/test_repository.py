"""Repository, statistics and configuration of the Open Inference Protocol, by REST and gRPC."""

import shutil

import grpc
import pytest
import requests

from tests.server.archives import write_archive
from tests.server.grpc_client import OPEN_INFERENCE, Client
from tests.server.guarded import guarded
from torchport.server.grpc.messages import open_inference
from torchport.store.folders import Store
from torchport.targets.torchport_serve import start

pytestmark = pytest.mark.server

ONE_WORKER = {"minWorkers": 1, "maxWorkers": 1}
ECHO = "def handle(data, context):\n    return data and [data[0]['body']]\n"
READY = {"state": "READY", "reason": ""}
INPUT = {"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [1, 2]}


@pytest.fixture(scope="module")
def controlled(linear_archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    store = folder / "store"
    store.mkdir()
    shutil.copy(linear_archive, store)
    write_archive(store, "plain", ECHO, config=ONE_WORKER)
    write_archive(store, "broken", "import no_module_has_this_name\n", config=ONE_WORKER)
    settings = {"enable_model_api": "true", "load_models": "linear", "default_workers_per_model": "1"}
    with start(Store(store), folder / "run", settings=settings) as server:
        yield server


@pytest.fixture(scope="module")
def ask(controlled):
    def send(method, path, **options):
        answer = requests.request(method, f"{controlled.urls['inference']}/v2{path}", timeout=60, **options)
        return answer.status_code, answer.json()

    return send


@pytest.fixture(scope="module")
def client(controlled):
    with grpc.insecure_channel(f"127.0.0.1:{controlled.ports['grpc_inference']}") as channel:
        yield Client(channel)


def index_of(ask, **body):
    status, found = ask("POST", "/repository/index", json=body)
    assert status == 200
    return {entry["name"]: (entry["version"], entry["state"]) for entry in found}


def test_a_model_is_loaded_and_unloaded(ask):
    assert ask("POST", "/repository/index", json={"ready": True}) == (
        200,
        [{"name": "linear", "version": "1.0", **READY}],
    )
    assert index_of(ask)["plain"] == ("1.0", "UNAVAILABLE")
    assert ask("POST", "/repository/models/plain/load") == (200, {})
    assert index_of(ask)["plain"] == ("1.0", "READY")
    assert ask("GET", "/models/plain/ready")[0] == 200
    assert ask(
        "POST", "/repository/models/plain/unload", json={"parameters": {"unload_dependents": False}}
    ) == (
        200,
        {},
    )
    assert index_of(ask)["plain"] == ("1.0", "UNAVAILABLE")
    assert ask("GET", "/models/plain/ready")[0] == 404
    # What was unloaded can be loaded again.
    assert ask("POST", "/repository/models/plain/load") == (200, {})
    assert ask("POST", "/repository/models/plain/unload") == (200, {})


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/repository/models/nobody/load", {}, 404, "nobody is not in the store"),
        ("/repository/models/nobody/unload", {}, 404, "nobody"),
        ("/repository/models/linear/load", {"parameters": {"config": "{}"}}, 400, "parameters config"),
        ("/repository/models/linear/load", [], 400, "JSON object"),
        ("/repository/index", {"ready": "yes"}, 400, "true or false"),
        ("/repository/models/broken/load", {}, 400, "no_module_has_this_name"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(ask, path, body, status, reason):
    found, said = ask("POST", path, json=body)
    assert (found, list(said)) == (status, ["error"])
    assert reason in said["error"]


def test_web_pages_may_not_load_models(ask):
    status, _ = ask("POST", "/repository/models/plain/load", headers={"Origin": "http://example.org"})
    assert status == 403


def test_statistics_count_what_was_asked(ask):
    def counted():
        _, said = ask("GET", "/models/linear/stats")
        (found,) = said["model_stats"]
        return found

    before = counted()
    assert ask("POST", "/models/linear/infer", json={"inputs": [INPUT]})[0] == 200
    after = counted()
    assert (after["name"], after["version"]) == ("linear", "1.0")
    for name in ("inference_count", "execution_count"):
        assert after[name] == before[name] + 1
    for name in ("success", "queue", "compute_infer"):
        assert after["inference_stats"][name]["count"] == before["inference_stats"][name]["count"] + 1
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    assert after["last_inference"] > before["last_inference"]
    assert ask("GET", "/models/linear/versions/1.0/stats")[1]["model_stats"] == [after]
    assert after in ask("GET", "/models/stats")[1]["model_stats"]


CONFIG = {
    "name": "linear",
    "platform": "onnx_onnxv1",
    "backend": "torchport",
    "max_batch_size": 0,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 1]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1, 1]}],
    "instance_group": [{"name": "main", "kind": "KIND_CPU", "count": 1}],
}


def test_a_model_tells_its_configuration(ask):
    assert ask("GET", "/models/linear/config") == (200, CONFIG)
    assert ask("GET", "/models/linear/versions/1.0/config") == (200, CONFIG)
    assert "model_repository" in ask("GET", "")[1]["extensions"]


def test_text_is_refused_with_where_to_send_it(ask):
    given = {"name": "x", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    status, said = ask("POST", "/models/linear/infer", json={"inputs": [given]})
    assert status == 400
    assert "BYTES" in said["error"]
    assert "/predictions" in said["error"]


def test_grpc_has_the_same(client):
    messages = open_inference

    def call(method, message, /, **fields):
        return client.call(OPEN_INFERENCE, method, message(**fields))

    call("RepositoryModelLoad", messages.RepositoryModelLoadRequest, model_name="plain")
    found = call("RepositoryIndex", messages.RepositoryIndexRequest, ready=True).models
    assert {"linear", "plain"} <= {model.name for model in found if model.state == "READY"}
    call("RepositoryModelUnload", messages.RepositoryModelUnloadRequest, model_name="plain")
    found = call("RepositoryIndex", messages.RepositoryIndexRequest).models
    assert ("plain", "UNAVAILABLE") in {(model.name, model.state) for model in found}
    (counted,) = call("ModelStatistics", messages.ModelStatisticsRequest, name="linear").model_stats
    assert (counted.name, counted.version) == ("linear", "1.0")
    config = call("ModelConfig", messages.ModelConfigRequest, name="linear").config
    assert (config.name, config.input[0].data_type, list(config.input[0].dims)) == ("linear", 11, [-1, 1])
    with pytest.raises(grpc.RpcError) as caught:
        call("RepositoryModelLoad", messages.RepositoryModelLoadRequest, model_name="nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_loading_needs_the_management_key(tmp_path):
    write_archive(tmp_path / "store", "plain", ECHO, config=ONE_WORKER)
    settings = {"model_store": str(tmp_path / "store"), "disable_token_authorization": "false"}
    with guarded(tmp_path / "run", settings | {"enable_model_api": "true", "load_models": "plain"}) as server:
        keys = server.keys()
        path = "/v2/repository/models/plain/unload"
        for wrong in (None, keys["inference"], keys["API"]):
            assert server.ask("inference", path, wrong, "POST").status_code == 400
        assert server.ask("inference", "/v2/repository/index", keys["inference"], "POST").status_code == 200
        with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc_inference']}") as channel:
            method = channel.unary_unary(f"/{OPEN_INFERENCE}/RepositoryModelUnload")
            message = open_inference.RepositoryModelUnloadRequest(model_name="plain").SerializeToString()
            with pytest.raises(grpc.RpcError) as caught:
                method(message, timeout=30, metadata=[("authorization", f"Bearer {keys['inference']}")])
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert server.ask("inference", path, keys["management"], "POST").status_code == 200
