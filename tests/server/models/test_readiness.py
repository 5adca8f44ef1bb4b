"""Ready is a server that has loaded what it was started with; what is not there is refused with reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.server.archives import write_archive
from tests.server.grpc_client import INFERENCE, OPEN_INFERENCE, Client
from tests.server.waiting import PATIENCE_S, wait_until
from torchport.server.grpc.messages import inference, open_inference

pytestmark = pytest.mark.server

HANDLER = """
    def handle(data, context):
        return data and ["answered"] * len(data)
"""

GATED = """
    import os
    import time

    while not os.path.exists(GATE):
        time.sleep(0.01)
"""

BROKEN = """
    import no_module_has_this_name
"""

HEALTHY, INSTALLING, LOADING = "healthy", "installing", "loading"


@dataclass(frozen=True)
class Starting:
    """A server that is started with a model whose requirements take long, one that loads long, and more.

    They take until `installed` and `loaded` are there.
    """

    urls: dict[str, str]
    grpc_port: int
    installed: Path
    loaded: Path

    def get(self, path: str, api: str = "inference") -> requests.Response:
        return requests.get(self.urls[api] + path, timeout=PATIENCE_S)

    def predict(self, model: str) -> requests.Response:
        url = f"{self.urls['inference']}/predictions/{model}"
        return requests.post(url, data="x", timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starting]:
    folder = tmp_path_factory.mktemp("starting")
    installed, loaded = folder / "installed", folder / "loaded"
    store, run = folder / "store", folder / "run"
    config = {"minWorkers": 1, "maxWorkers": 1}
    write_archive(store, HEALTHY, HANDLER, config=config)
    needs: dict[str, Any] = {
        "manifest": {"requirementsFile": "requirements.txt"},
        "files": {"requirements.txt": b"needed\n"},
    }
    write_archive(store, INSTALLING, HANDLER, config=config, **needs)
    gated = textwrap.dedent(GATED.replace("GATE", repr(str(loaded))))
    write_archive(store, LOADING, gated + textwrap.dedent(HANDLER), config=config)
    write_archive(store, "raising", BROKEN + HANDLER, config=config)
    (store / "damaged-1.0.mar").write_bytes(b"no archive")
    # This pip installs nothing, for as long as the test says.
    pip = folder / "modules" / "pip" / "__main__.py"
    pip.parent.mkdir(parents=True)
    pip.write_text(textwrap.dedent(GATED.replace("GATE", repr(str(installed)))))
    (pip.parent / "__init__.py").touch()
    asked = ",".join(f"{name}-1.0.mar" for name in (HEALTHY, INSTALLING, LOADING, "damaged"))
    (folder / "config.properties").write_text(
        f"model_store={store}\nload_models={asked}\ninstall_py_dep_per_model=true\nenable_model_api=true\n"
        "grpc_inference_port=0\ngrpc_management_port=0\n"
    )
    modules = os.pathsep.join([str(pip.parent.parent), os.environ.get("PYTHONPATH", "")])
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "torchport", "serve", "--port", "0", "--ncs", "--run", str(run)),
                *("--ts-config", str(folder / "config.properties")),
            ],
            env={**os.environ, "PYTHONPATH": modules},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    record = run / "server.json"
    try:
        wait_until(lambda: record.is_file() or process.poll() is not None)
        found = json.loads(record.read_text())
        urls = {api: found[api] for api in ("inference", "management")}
        yield Starting(urls, found["grpc_inference"], installed, loaded)
    finally:
        for gate in (installed, loaded):
            gate.touch()
        process.terminate()
        assert process.wait(PATIENCE_S) == 0, (folder / "server.log").read_text()[-3000:]


def is_ready(server: Starting) -> dict[str, bool]:
    """Whether the server is ready, by each way to ask it."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        client = Client(channel)
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        ready = client.call(OPEN_INFERENCE, "ServerReady", open_inference.ServerReadyRequest())
        ping = client.call(INFERENCE, "Ping", inference.Empty())
    return {
        "/ping": server.get("/ping").status_code == 200,
        "/v2/health/ready": server.get("/v2/health/ready").status_code == 200,
        "Check": check.status == health_pb2.HealthCheckResponse.SERVING,
        "ServerReady": ready.ready,
        "Ping": "Unhealthy" not in ping.health,
    }


def model_statuses(server: Starting, model: str) -> set[int]:
    """The statuses of every way to ask by HTTP whether a model is ready."""
    paths = ((f"/v1/models/{model}", "inference"), (f"/v1/models/{model}", "management"))
    return {
        *(server.get(path, api).status_code for path, api in paths),
        server.get(f"/v2/models/{model}/ready").status_code,
    }


def test_no_model_is_lost_while_it_is_loaded(server: Starting) -> None:
    # One is being installed, one is loading, one is there, one will never be.
    wait_until(lambda: server.get(f"/v1/models/{HEALTHY}").status_code == 200)
    assert set(is_ready(server).values()) == {False}, is_ready(server)
    assert server.get("/v2/health/live").status_code == 200
    assert server.predict(HEALTHY).text == "answered"
    assert model_statuses(server, HEALTHY) == {200}
    assert model_statuses(server, INSTALLING) == {503}
    for path in (f"/predictions/{INSTALLING}", f"/v1/models/{INSTALLING}:predict", "/invocations"):
        answer = requests.post(server.urls["inference"] + path, json={}, timeout=PATIENCE_S)
        assert answer.status_code == 503, (path, answer.text)
        assert "retry-after" in answer.headers
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        asked = open_inference.ModelReadyRequest(name=INSTALLING)
        assert not Client(channel).call(OPEN_INFERENCE, "ModelReady", asked).ready
    wait_until(lambda: "damaged-1.0.mar" in server.predict("damaged").text)

    server.installed.touch()
    wait_until(lambda: model_statuses(server, INSTALLING) == {200})
    assert set(is_ready(server).values()) == {False}, is_ready(server)
    assert model_statuses(server, LOADING) == {503}
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(server.predict(LOADING).text))
    waiting.start()
    described = f"/models/{LOADING}"

    def waits() -> bool:
        status = server.get(described, "management").json()[0]["jobQueueStatus"]
        return bool(status["pendingRequests"] == 1)

    wait_until(waits)

    server.loaded.touch()
    waiting.join(PATIENCE_S)
    assert answers == ["answered"]
    # What has failed for good keeps nobody from being ready.
    wait_until(lambda: set(is_ready(server).values()) == {True})
    assert model_statuses(server, LOADING) == {200}
    assert server.predict("nothing").status_code == 404


def test_a_damaged_archive_is_refused_with_the_reason(server: Starting) -> None:
    server.installed.touch()
    server.loaded.touch()
    wait_until(lambda: "damaged-1.0.mar" in server.predict("damaged").text)
    answer = server.predict("damaged")
    assert answer.status_code == 503
    assert "not a .mar file" in answer.json()["message"]
    # It will not be there a second later either.
    assert "retry-after" not in answer.headers
    assert model_statuses(server, "damaged") == {503}
    assert server.get("/predictions/damaged/2.0").status_code == 404


def test_a_model_that_no_worker_can_load_is_refused_at_once_and_does_not_cost_readiness(
    server: Starting,
) -> None:
    server.installed.touch()
    server.loaded.touch()
    wait_until(lambda: set(is_ready(server).values()) == {True})
    url = f"{server.urls['management']}/models"
    asked = {"url": "raising-1.0.mar", "initial_workers": "1", "synchronous": "false"}
    assert requests.post(url, params=asked, timeout=PATIENCE_S).status_code == 202
    answer = server.predict("raising")  # It waits for the worker, and is told when that has failed.
    assert answer.status_code == 503
    assert "No module named 'no_module_has_this_name'" in answer.json()["message"]
    assert "Traceback" not in answer.text
    assert server.predict("raising").text == answer.text
    assert model_statuses(server, "raising") == {503}
    assert is_ready(server)["/v2/health/ready"]
    assert requests.delete(f"{url}/raising", timeout=PATIENCE_S).status_code == 200
