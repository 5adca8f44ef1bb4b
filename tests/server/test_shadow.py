"""Shadow on a running server: what a wrong second backend shows in `/metrics`, and what it costs nobody."""

import psutil
import pytest
import requests

from tests.server.shadows import looked_at, metrics_when, with_shadow, wrong_artifact
from torchport.errors import ServerError
from torchport.server_process import start
from torchport.store import Store

pytestmark = pytest.mark.server


def ask(server, times):
    with requests.Session() as session:
        for number in range(times):
            answer = session.post(f"{server.urls['inference']}/predictions/linear", json=[number], timeout=30)
            assert answer.status_code == 200, answer.text
            assert answer.json()[0] == pytest.approx(3 * number + 2, abs=1 + 0.2 * number)


def test_a_wrong_second_backend_shows_within_a_hundred_requests(linear_archive, tmp_path):
    with_shadow(linear_archive, tmp_path / "store" / "linear-1.0.mar", 0.1, artifact=wrong_artifact())
    with start(Store(tmp_path / "store"), tmp_path / "run") as server:
        ask(server, 100)
        found = metrics_when(server.urls["metrics"], lambda found: looked_at(found) >= 10)
        assert found["ShadowDisagreements"] == found["ShadowRows"] >= 1
        assert found["ShadowMaxDifference"] > 900
        assert "shadow: the backends disagree, first on graph main" in server.log()
        # TorchServe's names for what a handler counts: no version, so the model's is enough.
        (worker,) = (
            p
            for p in psutil.Process(server.pid).children(recursive=True)
            if "shadow_process" in str(p.cmdline())
        )
        worker.kill()
        ask(server, 100)
        assert metrics_when(server.urls["metrics"], lambda found: looked_at(found) >= 20)["ShadowDrops"] >= 9
        assert "its process is gone" in server.log()
    assert not worker.is_running()


@pytest.mark.parametrize("shared_worker", ["", "small"])
def test_the_right_second_backend_agrees_and_goes_with_the_server(linear_archive, tmp_path, shared_worker):
    archive = tmp_path / "store" / "linear-1.0.mar"
    with_shadow(linear_archive, archive, 1, shared_worker=shared_worker)
    with start(Store(tmp_path / "store"), tmp_path / "run") as server:
        children = psutil.Process(server.pid).children(recursive=True)
        ask(server, 30)
        found = metrics_when(server.urls["metrics"], lambda found: looked_at(found) >= 30)
        assert found["ShadowRows"] >= 1
        assert found["ShadowDisagreements"] == 0
        assert any("shadow_process" in str(child.cmdline()) for child in children)
    # On a machine that is busy with something else, the idle class has to wait for its turn to end.
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def test_a_shadow_that_cannot_be_had_is_told_when_the_model_is_loaded(linear_archive, tmp_path):
    archive = tmp_path / "store" / "linear-1.0.mar"
    with_shadow(linear_archive, archive, 0.1, artifact=b"this is no TorchScript")
    with pytest.raises(ServerError, match="shadow: main.pt: torch cannot load it"):
        start(Store(tmp_path / "store"), tmp_path / "run")
