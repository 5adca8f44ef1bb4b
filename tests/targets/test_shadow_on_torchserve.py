"""Shadow inside a real TorchServe, on the configuration that ships: the same metrics under the same names."""

import psutil
import pytest
import requests

from tests.server.shadows import (
    assert_ends,
    looked_at,
    metrics_when,
    shadow_processes,
    stuck_artifact,
    wait_until_busy,
    with_shadow,
    wrong_artifact,
)
from torchport.store.folders import Store
from torchport.targets.torchserve import start
from torchport.targets.torchserve_setup import Ports

pytestmark = pytest.mark.serving


def test_a_wrong_second_backend_shows_in_torchserves_metrics(linear_archive, tmp_path):
    with_shadow(linear_archive, tmp_path / "store" / "linear-1.0.mar", 0.5, artifact=wrong_artifact())
    ports = Ports.free()
    with (
        start(Store(tmp_path / "store"), tmp_path / "run", ports=ports) as server,
        server.client() as client,
    ):

        def told(found):
            # TorchServe has no moment between two requests in which a handler could say something.
            client.predict("linear", json=[4.0])
            return found.get("ShadowDisagreements", 0) >= 5

        for _ in range(20):
            client.predict("linear", json=[4.0])
        found = metrics_when(f"http://127.0.0.1:{ports.metrics}", told)
        assert looked_at(found) >= found["ShadowRows"] == found["ShadowDisagreements"]
        assert found["ShadowMaxDifference"] == pytest.approx(1018, abs=2)


def terminate_the_server(server, worker):
    psutil.Process(server.pid).terminate()


def kill_the_server(server, worker):
    psutil.Process(server.pid).kill()


def kill_the_worker(server, worker):
    worker.kill()


def unregister(server, worker):
    url = f"http://127.0.0.1:{server.ports.management}/models/linear/1.0"
    requests.delete(url, timeout=60).raise_for_status()


@pytest.mark.parametrize("end", [terminate_the_server, kill_the_server, kill_the_worker, unregister])
def test_a_second_backend_that_is_stuck_ends_with_its_worker(linear_archive, tmp_path, end):
    with_shadow(linear_archive, tmp_path / "store" / "linear-1.0.mar", 1, artifact=stuck_artifact())
    ports, settings = Ports.free(), {"enable_model_api": "true"}
    with (
        start(Store(tmp_path / "store"), tmp_path / "run", ports=ports, settings=settings) as server,
        server.client() as client,
    ):
        (process,) = shadow_processes(server.pid)
        client.predict("linear", json=[1000.0])
        wait_until_busy(process)
        # There before a row has been looked at: this one never will be.
        found = metrics_when(f"http://127.0.0.1:{ports.metrics}", lambda found: len(found) == 3)
        assert found == {"ShadowRows": 0, "ShadowDisagreements": 0, "ShadowDrops": 0}
        for _ in range(5):
            client.predict("linear", json=[4.0])  # Callers are answered meanwhile.
        assert process.is_running()
        end(server, process.parent())
        assert_ends(process)
