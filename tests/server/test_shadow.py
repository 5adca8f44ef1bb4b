"""Shadow on a running server: what a wrong second backend shows in `/metrics`, and what it costs nobody."""

import sys

import psutil
import pytest
import requests

from tests.server.shadows import (
    assert_ends,
    looked_at,
    metrics_when,
    shadow_metrics,
    shadow_processes,
    stuck_artifact,
    wait_until_busy,
    with_shadow,
    wrong_artifact,
)
from tests.server.waiting import PATIENCE_S, lines_with
from torchport.errors import ServerError
from torchport.store.folders import Store
from torchport.targets.torchport_serve import start

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
        assert lines_with(server.log, "shadow: the backends disagree, first on graph main")
        # TorchServe's names for what a handler counts: no version, so the model's is enough.
        (worker,) = shadow_processes(server.pid)
        worker.kill()
        ask(server, 100)
        assert metrics_when(server.urls["metrics"], lambda found: looked_at(found) >= 20)["ShadowDrops"] >= 9
        assert lines_with(server.log, "its process is gone")
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
        assert shadow_processes(server.pid)
    # On a machine that is busy with something else, the idle class has to wait for its turn to end.
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
    assert not alive


def test_a_shadow_that_cannot_be_had_is_told_when_the_model_is_loaded(linear_archive, tmp_path):
    archive = tmp_path / "store" / "linear-1.0.mar"
    with_shadow(linear_archive, archive, 0.1, artifact=b"this is no TorchScript")
    with pytest.raises(ServerError, match="shadow: main.pt: torch cannot load it"):
        start(Store(tmp_path / "store"), tmp_path / "run")


def test_metrics_are_there_at_zero_before_there_is_anything_to_tell(linear_archive, tmp_path):
    # Of a million rows one is picked: with all likelihood none of these.
    with_shadow(linear_archive, tmp_path / "store" / "linear-1.0.mar", 1e-6)
    with start(Store(tmp_path / "store"), tmp_path / "run") as server:
        ask(server, 1)
        found = shadow_metrics(server.urls["metrics"])
        assert found == {"ShadowRows": 0, "ShadowDisagreements": 0, "ShadowDrops": 0}
        text = requests.get(f"{server.urls['metrics']}/metrics", timeout=10).text
        assert "# HELP ShadowDrops Rows that were sampled for a shadow and not run again" in text


def worker_of(server):
    (worker,) = (p for p in psutil.Process(server.pid).children() if shadow_processes(p.pid))
    return worker


def terminate(server):
    server.process.terminate()


def kill_the_worker(server):
    worker_of(server).kill()


def unregister(server):
    requests.delete(f"{server.urls['management']}/models/linear", timeout=60).raise_for_status()


def scale_to_none(server):
    query = {"min_worker": 0, "max_worker": 0, "synchronous": "true"}
    requests.put(f"{server.urls['management']}/models/linear", params=query, timeout=60).raise_for_status()


def stuck_server(archive, folder, **options):
    with_shadow(archive, folder / "store" / "linear-1.0.mar", 1, artifact=stuck_artifact(), **options)
    return start(Store(folder / "store"), folder / "run", settings={"enable_model_api": "true"})


def get_stuck(server):
    """Let the second backend begin a computation that has no end; its process."""
    (process,) = shadow_processes(server.pid)
    answer = requests.post(f"{server.urls['inference']}/predictions/linear", json=[1000], timeout=30)
    assert answer.status_code == 200, answer.text
    wait_until_busy(process)
    ask(server, 20)  # Callers are answered meanwhile.
    assert process.is_running()
    return process


@pytest.mark.parametrize("end", [terminate, kill_the_worker, unregister, scale_to_none])
def test_a_second_backend_that_is_stuck_ends_with_its_worker(linear_archive, tmp_path, end):
    with stuck_server(linear_archive, tmp_path) as server:
        process = get_stuck(server)
        end(server)
        assert_ends(process)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process whose threads cannot run")
@pytest.mark.parametrize("end", [terminate, kill_the_worker])
def test_a_second_backend_that_keeps_the_interpreter_to_itself_ends_with_its_worker(
    linear_archive, tmp_path, end
):
    with stuck_server(linear_archive, tmp_path) as server:
        process = get_stuck(server)
        process.suspend()  # None of its threads can do anything, as with a lock that one of them keeps.
        end(server)
        assert_ends(process)


def test_a_stuck_model_leaves_a_worker_that_others_share(linear_archive, tmp_path):
    with stuck_server(linear_archive, tmp_path, shared_worker="small") as server:
        process = get_stuck(server)
        query = {"url": "linear-1.0.mar", "model_name": "other", "initial_workers": 1, "synchronous": "true"}
        requests.post(f"{server.urls['management']}/models", params=query, timeout=60).raise_for_status()
        worker = worker_of(server)
        unregister(server)
        assert_ends(process)
        answer = requests.post(f"{server.urls['inference']}/predictions/other", json=[4], timeout=30)
        assert answer.status_code == 200, answer.text
        assert worker_of(server) == worker


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that chooses so")
def test_where_memory_runs_out_the_second_backend_is_the_first_to_go(linear_archive, tmp_path):
    with_shadow(linear_archive, tmp_path / "store" / "linear-1.0.mar", 1)
    with start(Store(tmp_path / "store"), tmp_path / "run") as server:
        (process,) = shadow_processes(server.pid)
        with open(f"/proc/{process.pid}/oom_score_adj", encoding="ascii") as score:
            assert int(score.read()) == 1000
