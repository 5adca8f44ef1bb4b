"""Several models in one process: each sees itself only, and none waits for ever for another."""

import threading
import zipfile

import psutil
import pytest
import requests
import yaml

from tests.server.archives import write_archive
from tests.server.waiting import wait_until
from torchport.store.folders import Store
from torchport.targets.torchport_serve import start

pytestmark = pytest.mark.server

HANDLER = """
    import json
    import os

    import same_name

    def handle(data, context):
        if data is None:
            return None
        import later
        body = data[0].get("body")
        if body == "exit":
            os._exit(5)
        if body == "sleep":
            import time
            time.sleep(0.3)
        report = {"pid": os.getpid(), "who": same_name.WHO, "later": later.WHO,
                  "folder": os.getcwd(), "told": context.system_properties["model_dir"]}
        return [json.dumps(report)] * len(data)
"""

CONFIG = {"minWorkers": 1, "maxWorkers": 1, "torchport_server": {"shared_worker": "small"}}


@pytest.fixture(scope="module")
def shared(linear_archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    store = Store(folder / "store")
    for name in ("one", "two", "three"):
        who = f"WHO = {name!r}\n".encode()
        write_archive(store.path, name, HANDLER, config=CONFIG, files={"same_name.py": who, "later.py": who})
    for name in ("left", "right"):
        # Archives of torchport's, each with a runtime of its own; their certificates are left out.
        with zipfile.ZipFile(linear_archive) as source:
            config = yaml.safe_load(source.read("model-config.yaml")) | CONFIG
            files = {n: source.read(n) for n in source.namelist() if n not in ("parity.json", "regressor.py")}
            handler = source.read("regressor.py").decode()
        for own in ("model-config.yaml", "MAR-INF/MANIFEST.json"):
            del files[own]
        write_archive(store.path, name, handler, config=config, files=files)
    settings = {"enable_grpc": "false", "enable_model_api": "true"}
    with start(store, folder / "run", settings=settings) as server:
        yield server


def ask(server, model, body="x", status=200):
    kind = "application/json" if body.startswith("[") else "text/plain"
    answer = requests.post(
        f"{server.urls['inference']}/predictions/{model}",
        data=body,
        headers={"Content-Type": kind},
        timeout=30,
    )
    assert answer.status_code == status, answer.text
    return answer.json()


def test_they_share_one_process_and_see_only_themselves(shared):
    assert len(psutil.Process(shared.pid).children()) == 1
    for _ in range(3):
        answers = {name: ask(shared, name) for name in ("one", "two", "three")}
        assert {name: (a["who"], a["later"]) for name, a in answers.items()} == {
            name: (name, name) for name in answers
        }
        assert all(a["folder"] == a["told"] for a in answers.values())
        assert len({a["pid"] for a in answers.values()}) == 1
        assert ask(shared, "left", "[4.0]") == ask(shared, "right", "[4.0]")


def test_a_busy_one_does_not_starve_the_others(shared):
    done = threading.Event()

    def keep_busy():
        while not done.is_set():
            ask(shared, "one", "sleep")

    busy = [threading.Thread(target=keep_busy) for _ in range(4)]
    for thread in busy:
        thread.start()
    # Four ask the one without a pause; each of these waits for one batch of theirs at most.
    for _ in range(3):
        ask(shared, "two")
    done.set()
    for thread in busy:
        thread.join()


def test_one_that_ends_the_process_costs_the_others_no_request(shared):
    before = ask(shared, "two")["pid"]
    waiting = []
    threads = [
        threading.Thread(target=lambda: waiting.append(ask(shared, "three", "sleep"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert "Incident" in ask(shared, "one", "exit", status=500)["message"]
    for thread in threads:
        thread.join()
    assert [answer["who"] for answer in waiting] == ["three"] * 3
    assert ask(shared, "two")["pid"] != before
    wait_until(lambda: len(psutil.Process(shared.pid).children()) == 1)


def test_one_leaves_and_comes_back_while_the_others_stay(shared):
    management = shared.urls["management"]
    before = ask(shared, "two")["pid"]
    assert requests.delete(f"{management}/models/three", timeout=30).status_code == 200
    answer = requests.post(f"{shared.urls['inference']}/predictions/three", data="x", timeout=10)
    assert answer.status_code == 404
    assert ask(shared, "two")["pid"] == before
    assert requests.post(f"{management}/models?url=three-1.0.mar", timeout=30).status_code == 200
    assert ask(shared, "three")["pid"] == before


def test_one_that_cannot_be_loaded_leaves_the_others_alone(shared):
    before = ask(shared, "two")["pid"]
    broken = "import not_there\n\ndef handle(data, context):\n    return data\n"
    write_archive(shared.run.parent / "store", "broken", broken, config=CONFIG)
    answer = requests.post(
        f"{shared.urls['management']}/models?url=broken-1.0.mar&initial_workers=1", timeout=30
    )
    assert answer.status_code == 500
    assert "not_there" in answer.json()["message"]
    assert ask(shared, "two")["pid"] == before
