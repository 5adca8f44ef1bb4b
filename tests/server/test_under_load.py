"""What must not be lost when workers die, versions roll, workers come and go, and more comes than fits."""

import asyncio
import json
import os
import re
import shutil
import signal
import threading
from collections import Counter
from functools import partial

import psutil
import pytest
import requests

from tests.conftest import ROOT, run_stages
from tests.kept_builds import kept_build
from tests.server.archives import write_archive
from tests.server.load import Load
from tests.server.metrics import metric
from tests.server.waiting import wait_until
from torchport.archive.model import load
from torchport.recipe.loading import load_recipe
from torchport.store.folders import Store
from torchport.targets.torchport_serve import start

pytestmark = pytest.mark.server

SECONDS = 30.0

QUIET = {"enable_grpc": "false"}


@pytest.mark.slow
def test_killed_workers_a_rolled_version_and_scaling_lose_no_request(shipped, linear_archive, tmp_path):
    newer = tmp_path / "linear.py"
    newer.write_text((ROOT / "export" / "linear.py").read_text().replace('"1.0"', '"1.10"'))
    newest = kept_build(run_stages, load_recipe(newer), Store(tmp_path / "newer"), seed=5)
    store = Store(tmp_path / "store")
    store.path.mkdir()
    shutil.copy(linear_archive, store.path)
    with load(linear_archive) as old, load(newest) as new:
        lines = [[model.predict([0.0])[0], model.predict([1.0])[0]] for model in (old, new)]
    expected = [(lambda x, b=b, w=w - b: w * x + b) for b, w in lines]
    with start(store, tmp_path / "run", settings={**QUIET, "enable_model_api": "true"}) as server:
        shutil.copy(newest, store.path)
        stop, kills = threading.Event(), []

        def kill_workers():
            while not stop.wait(2.0):
                workers = psutil.Process(server.pid).children()
                if workers:
                    victim = workers[len(kills) % len(workers)]
                    victim.send_signal(signal.SIGKILL)
                    kills.append(victim.pid)

        def manage():
            management = server.urls["management"]
            step = SECONDS / 8
            for method, path in (
                ("POST", "/models?url=linear-1.10.mar&initial_workers=1"),
                ("PUT", "/models/linear/1.10/set-default"),
                ("DELETE", "/models/linear/1.0"),
                ("PUT", "/models/linear?min_worker=3&synchronous=true"),
                ("PUT", "/models/linear?min_worker=1&synchronous=true"),
            ):
                stop.wait(step)
                answer = requests.request(method, management + path, timeout=60)
                managed.append((path, answer.status_code, answer.text))

        managed = []
        threads = [threading.Thread(target=kill_workers), threading.Thread(target=manage)]
        for thread in threads:
            thread.start()
        # Every request has a number of its own: an answer to another caller is a wrong one.
        traffic = Load(
            server.urls["inference"], "/predictions/linear", 64, lambda c, n: [float(c + n / 2**16)]
        )
        asyncio.run(traffic.run(seconds=SECONDS))
        stop.set()
        for thread in threads:
            thread.join()
        assert all(status == 200 for _, status, _ in managed), managed
        assert len(kills) >= 10
        assert traffic.errors == []
        assert Counter(answer.status for answer in traffic.answers) == {200: len(traffic.answers)}
        wrong = [
            a
            for a in traffic.answers
            if all(abs(json.loads(a.body)[0] - f(a.sent[0])) > 1e-3 for f in expected)
        ]
        assert wrong == []
        assert len({a.headers["x-request-id"] for a in traffic.answers}) == len(traffic.answers)
        count = len(traffic.answers)
        assert metric(server, "ts_inference_requests_total", model_name="linear") == count
        assert metric(server, "torchport_completed_requests_total", model_name="linear") == count
        assert metric(server, "torchport_failed_requests_total", model_name="linear") == 0
        # A worker that is killed while it retires is not started again: one of 1.0, two of three are retired.
        restarts = partial(metric, server, "torchport_worker_restarts_total", model_name="linear")
        wait_until(lambda: len(kills) - 3 <= restarts() <= len(kills))
        assert metric(server, "torchport_inference_seconds_count", model_name="linear") == count


EXITS = """
    import json
    import os

    def handle(data, context):
        if data is None:
            return None
        rows = [row.get("body") for row in data]
        if any(row["number"] % 1000 == 7 for row in rows):
            os._exit(3)
        return [json.dumps(row["number"]) for row in rows]
"""


def test_of_rows_that_make_the_handler_exit_exactly_those_fail(tmp_path):
    store = Store(tmp_path / "store")
    write_archive(store.path, "exits", EXITS, config={"minWorkers": 2, "maxWorkers": 2, "batchSize": 8})
    with start(store, tmp_path / "run", settings=QUIET) as server:
        traffic = Load(
            server.urls["inference"], "/predictions/exits", 20, lambda c, n: {"number": c * 200 + n}
        )
        asyncio.run(traffic.run(requests=200))
        assert traffic.errors == []
        failed = sorted(a.sent["number"] for a in traffic.answers if a.status != 200)
        assert failed == [7, 1007, 2007, 3007]
        assert all(json.loads(a.body) == a.sent["number"] for a in traffic.answers if a.status == 200)
        for answer in traffic.answers:
            if answer.status != 200:
                error = json.loads(answer.body)
                assert answer.status == error["code"] == 500
                incident = re.search(r"Incident ([0-9a-f-]{36})", error["message"])
                assert incident
                assert incident[1] in server.log()
        assert metric(server, "torchport_failed_requests_total", model_name="exits") == 4


HOLDS = """
    import os
    import time

    def handle(data, context):
        if data is None:
            return None
        while not os.path.exists(GATE):
            time.sleep(0.01)
        return ["done"] * len(data)
"""


def test_what_does_not_fit_the_queue_is_refused_at_once_and_the_rest_is_answered(tmp_path):
    store, gate = Store(tmp_path / "store"), tmp_path / "gate"
    write_archive(
        store.path,
        "slow",
        HOLDS.replace("GATE", repr(str(gate))),
        config={"minWorkers": 1, "maxWorkers": 1, "batchSize": 1, "jobQueueSize": 100},
    )
    with start(store, tmp_path / "run", settings=QUIET) as server:
        traffic = Load(server.urls["inference"], "/predictions/slow", 1000, lambda c, n: c)
        thread = threading.Thread(target=lambda: asyncio.run(traffic.run(requests=1)))
        thread.start()
        # A hundred wait, behind the one that the worker has.
        wait_until(lambda: metric(server, "torchport_rejected_requests_total", model_name="slow") == 899)
        gate.touch()
        thread.join()
        assert traffic.errors == []
        assert Counter(answer.status for answer in traffic.answers) == {200: 101, 503: 899}
        refused = [a for a in traffic.answers if a.status == 503]
        assert all(int(a.headers["retry-after"]) >= 1 for a in refused)
        assert all(json.loads(a.body)["type"] == "ServiceUnavailableException" for a in refused)


HANGS = """
    import os
    import signal
    import time

    def handle(data, context):
        if data is None:
            return None
        rows = [row["body"] for row in data]
        if "hang" in rows:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        gates = [str(row).split()[1] for row in rows if str(row).startswith("hold ")]
        while not all(os.path.exists(gate) for gate in gates):
            time.sleep(0.01)
        return [str(os.getpid())] * len(rows)
"""


@pytest.fixture(scope="module")
def hanging(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hangs")
    store = Store(folder / "store")
    config = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 4, "responseTimeout": 1}
    write_archive(store.path, "hangs", HANGS, config=config)
    with start(store, folder / "run", settings=QUIET) as server:
        yield server


def ask(server, body, model="hangs", **headers):
    return requests.post(
        f"{server.urls['inference']}/predictions/{model}",
        data=body,
        headers={"Content-Type": "text/plain", **headers},
        timeout=30,
    )


def test_a_worker_that_hangs_is_killed_at_its_time_limit(hanging):
    before = ask(hanging, "a").text
    answer = ask(hanging, "hang")
    assert answer.status_code == 500
    assert "Incident" in answer.json()["message"]
    after = ask(hanging, "a").text
    assert after != before
    assert not psutil.pid_exists(int(before))


def test_a_request_whose_own_time_is_up_is_answered_and_never_reaches_the_model(hanging, tmp_path):
    gate = tmp_path / "gate"
    before = queue(hanging)["batch"]
    first = threading.Thread(target=ask, args=(hanging, f"hold {gate}"))
    first.start()
    wait_until(lambda: queue(hanging)["batch"] > before)
    answer = ask(hanging, "late", **{"X-Request-Timeout-Ms": "50"})
    gate.touch()
    first.join()
    assert answer.status_code == 504
    assert answer.json()["type"] == "RequestTimeoutException"
    assert metric(hanging, "torchport_expired_requests_total", model_name="hangs") == 1


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1.5", ""])
def test_a_time_limit_that_is_none_is_refused(hanging, value):
    answer = ask(hanging, "a", **{"X-Request-Timeout-Ms": value})
    assert answer.status_code == 400
    assert "X-Request-Timeout-Ms" in answer.json()["message"]


def queue(server):
    return {"batch": metric(server, "torchport_batch_rows_count", model_name="hangs")}


def test_workers_do_not_outlive_a_front_that_is_killed(tmp_path):
    store = Store(tmp_path / "store")
    write_archive(store.path, "hangs", HANGS, config={"minWorkers": 2, "maxWorkers": 2})
    server = start(store, tmp_path / "run", settings=QUIET)
    front = psutil.Process(server.pid)
    workers = front.children(recursive=True)
    assert len(workers) == 2

    def ask_in_vain():
        with pytest.raises(requests.RequestException):
            ask(server, "hang")

    busy = threading.Thread(target=ask_in_vain)
    busy.start()
    wait_until(lambda: queue(server)["batch"] > 0)
    front.kill()
    _, alive = psutil.wait_procs(workers, timeout=10)
    server.stop()
    busy.join()
    assert alive == []


def test_on_sigterm_what_was_taken_is_answered(tmp_path):
    store = Store(tmp_path / "store")
    write_archive(store.path, "hangs", HANGS, config={"minWorkers": 1, "maxWorkers": 1})
    with start(store, tmp_path / "run", settings={**QUIET, "drain_time": "3"}) as server:
        workers = psutil.Process(server.pid).children(recursive=True)
        answers = []
        held = f"hold {tmp_path / 'gate'}"
        waiting = [threading.Thread(target=lambda: answers.append(ask(server, held))) for _ in range(3)]
        for thread in waiting:
            thread.start()
        wait_until(lambda: queue(server)["batch"] > 0)
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: "answering what was taken" in server.log())
        health = requests.get(f"{server.urls['inference']}/ping", timeout=5)
        (tmp_path / "gate").touch()
        for thread in waiting:
            thread.join()
        # The signal of `stop` would be the second one.
        assert server.process.wait(30) == 0
    assert health.status_code == 503
    assert [answer.status_code for answer in answers] == [200] * 3
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []


BROKEN = """
    import a_module_that_is_not_there

    def handle(data, context):
        return data
"""


def test_a_handler_that_cannot_be_loaded_shows_its_traceback_and_does_not_spin(tmp_path):
    store = Store(tmp_path / "store")
    write_archive(store.path, "broken", BROKEN, config={"minWorkers": 1, "maxWorkers": 1})
    write_archive(store.path, "hangs", HANGS, config={"minWorkers": 1, "maxWorkers": 1})
    with pytest.raises(Exception, match="a_module_that_is_not_there"):
        start(store, tmp_path / "run", settings=QUIET)
    settings = {**QUIET, "enable_model_api": "true", "load_models": "hangs-1.0.mar"}
    with start(store, tmp_path / "other", settings=settings) as server:
        answer = requests.post(
            f"{server.urls['management']}/models?url=broken-1.0.mar&initial_workers=1", timeout=60
        )
        assert answer.status_code == 500
        assert "No module named 'a_module_that_is_not_there'" in answer.json()["message"]
        requests.post(
            f"{server.urls['management']}/models?url=broken-1.0.mar&initial_workers=1&synchronous=false",
            timeout=60,
        )
        wait_until(lambda: metric(server, "torchport_worker_restarts_total", model_name="broken") >= 3)
        described = requests.get(f"{server.urls['management']}/models/broken", timeout=10).json()
        assert "a_module_that_is_not_there" in described[0]["lastFailure"]
        assert server.log().count("is started again in") < 6
        assert ask(server, "a").status_code == 200


def test_a_client_that_hung_up_costs_no_place_and_no_work(tmp_path):
    store = Store(tmp_path / "store")
    config = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 1, "jobQueueSize": 2}
    write_archive(store.path, "hangs", HANGS, config=config)
    with start(store, tmp_path / "run", settings=QUIET) as server:
        gate = tmp_path / "gate"
        busy = threading.Thread(target=ask, args=(server, f"hold {gate}"))
        busy.start()
        wait_until(lambda: queue(server)["batch"] == 1)
        for _ in range(6):
            # More than wait: those that have gone make room.
            with pytest.raises(requests.Timeout):
                requests.post(f"{server.urls['inference']}/predictions/hangs", data="gone", timeout=(5, 0.03))
        gate.touch()
        assert ask(server, "a").status_code == 200
        busy.join()
        assert metric(server, "torchport_completed_requests_total", model_name="hangs") == 2
