"""Scaling up and down close together leaves as many workers as the last request said, and nothing else."""

import os
import threading

import psutil
import pytest
import requests

from tests.server.archives import write_archive
from tests.server.waiting import PATIENCE_S, comes_true, wait_until
from torchport.store.folders import Store
from torchport.targets.torchport_serve import start

pytestmark = pytest.mark.server

HANDLER = """
    def handle(data, context):
        return data and ["answered"] * len(data)
"""

WITH_A_CHILD = """
    import subprocess

    subprocess.Popen(CHILD)

    def handle(data, context):
        return data and ["answered"] * len(data)
"""

CONNECTIONS = 8
REQUESTS = 13
"""Number of requests of each connection: some hundred in all."""

CHILD = ["sleep", f"27182.{os.getpid()}"]
"""The command of the child that each worker of `own` starts; no other test has it."""

SLACK = 8
"""Number of descriptors that may differ: connections of the clients that are not closed yet."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaling")
    store = Store(folder / "store")
    config = {"minWorkers": 1, "maxWorkers": 1}
    write_archive(store.path, "own", WITH_A_CHILD.replace("CHILD", repr(CHILD)), config=config)
    shared = config | {"torchport_server": {"shared_worker": "both"}}
    write_archive(store.path, "shared", HANDLER, config=shared)
    with start(store, folder / "run", settings={"enable_grpc": "false"}) as server:
        yield server


def children_of_workers():
    return [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"] == CHILD]


@pytest.mark.parametrize("model", ["own", "shared"])
def test_a_hundred_quick_scale_requests_leave_no_process_and_no_descriptor(server, model):
    front = psutil.Process(server.pid)
    url = f"{server.urls['management']}/models/{model}"

    def scaled(session, workers):
        answer = session.put(url, params={"min_worker": workers}, timeout=PATIENCE_S)
        assert answer.status_code == 202, answer.text

    def scale_often(number):
        with requests.Session() as session:
            for count in range(REQUESTS):
                scaled(session, 1 + (number + count) % 3)

    wait_until(lambda: len(front.children()) == 2)
    descriptors, threads_before = front.num_fds(), front.num_threads()
    threads = [threading.Thread(target=scale_often, args=(number,)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with requests.Session() as session:
        scaled(session, 1)

    def is_quiet():
        workers = requests.get(url, timeout=PATIENCE_S).json()[0]["workers"]
        return len(front.children()) == 2 and [worker["status"] for worker in workers] == ["READY"]

    assert comes_true(is_quiet, 60), f"{len(front.children())} processes are left"
    assert comes_true(lambda: len(children_of_workers()) == 1, 60), children_of_workers()
    assert comes_true(lambda: front.num_fds() <= descriptors + SLACK), front.num_fds() - descriptors
    assert comes_true(lambda: front.num_threads() <= threads_before + 2)
    answer = requests.post(f"{server.urls['inference']}/predictions/{model}", data="x", timeout=PATIENCE_S)
    assert answer.text == "answered"
