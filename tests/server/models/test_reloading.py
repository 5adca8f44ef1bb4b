"""A running server picks up what the store holds: warm before it is asked, and nobody loses an answer."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from typer.testing import CliRunner

from tests.server.archives import write_archive
from tests.server.waiting import wait_until
from torchport.cli.app import app
from torchport.errors import RequestError
from torchport.server.errors import ArchiveNotFound
from torchport.server.models.management import set_default, unregister
from torchport.server.models.registry import Registry
from torchport.server.models.reloading import reload
from torchport.server.models.startup import load_models
from torchport.server.models.watching import watch
from torchport.server.settings.settings import ServerSettings
from torchport.store.folders import Store
from torchport.targets.torchport_serve import ServerProcess, start

HANDLER = """
    import time

    def handle(data, context):
        time.sleep(0.01)
        return data and ["{}"] * len(data)
"""
NONE = {"minWorkers": 0, "maxWorkers": 0}
times = iter(range(1, 1000))


def put(store: Path, name: str, version: str = "1.0", *, says: str = "", config: Any = NONE) -> Path:
    """An archive, whole at once, and of a time of its own."""
    made = write_archive(
        store / ".new", name, HANDLER.format(says or version), version=version, config=config
    )
    os.utime(made, (0, next(times)))
    return made.replace(store / made.name)


def serving(store: Path, do: Callable[[Registry], Coroutine[Any, Any, None]], models: str = "all") -> None:
    """Start without workers, in this process, and do something."""
    settings = ServerSettings(model_store=store, load_models=models)

    async def run() -> None:
        registry = Registry(settings)
        await load_models(registry, settings)
        try:
            await do(registry)
        finally:
            await registry.close(0)

    asyncio.run(run())


def versions(registry: Registry) -> dict[str, list[str]]:
    """Versions by model, the default one first."""
    return {
        name: sorted(model.versions, key=lambda number: (number != model.default, number))
        for name, model in registry.models.items()
    }


def test_new_versions_and_models_are_served_and_what_was_removed_is_not(tmp_path: Path) -> None:
    put(tmp_path, "linear")
    put(tmp_path, "removed")

    async def do(registry: Registry) -> None:
        await unregister(registry, "removed")
        assert str(await reload(registry)) == "no news"
        put(tmp_path, "linear", "10.0")
        put(tmp_path, "other")
        done = await reload(registry)
        assert sorted(done.loaded) == ["linear 10.0", "other 1.0"]
        assert sorted(done.default) == ["linear 10.0", "other 1.0"]
        assert versions(registry) == {"linear": ["10.0", "1.0"], "other": ["1.0"]}
        put(tmp_path, "linear", "9.0")
        assert (await reload(registry)).default == []
        assert versions(registry)["linear"] == ["10.0", "1.0", "9.0"]
        assert (await reload(registry, ["removed"])).loaded == ["removed 1.0"]

    serving(tmp_path, do)


def test_a_default_that_was_set_stays_and_retired_versions_go(tmp_path: Path) -> None:
    put(tmp_path, "linear")
    put(tmp_path, "linear", "2.0")

    async def do(registry: Registry) -> None:
        await set_default(registry, "linear", "1.0")
        put(tmp_path, "linear", "3.0")
        done = await reload(registry)
        assert (done.loaded, done.default) == (["linear 3.0"], [])
        assert versions(registry) == {"linear": ["1.0", "2.0", "3.0"]}
        await set_default(registry, "linear", "3.0")
        put(tmp_path, "linear", "4.0")
        assert (await reload(registry, retire=True)).retired == ["linear 3.0"]
        assert versions(registry) == {"linear": ["4.0", "1.0", "2.0"]}

    serving(tmp_path, do)


def test_only_what_the_server_was_started_with_is_looked_for_unless_it_is_named(tmp_path: Path) -> None:
    put(tmp_path, "linear")
    put(tmp_path, "other")

    async def do(registry: Registry) -> None:
        put(tmp_path, "linear", "2.0")
        put(tmp_path, "other", says="changed")
        assert (await reload(registry)).loaded == ["linear 2.0"]
        assert versions(registry) == {"linear": ["2.0", "1.0"]}
        assert (await reload(registry, ["other@1.0"])).loaded == ["other 1.0"]
        with pytest.raises(ArchiveNotFound, match="did you mean 'linear'"):
            await reload(registry, ["linaer"])

    serving(tmp_path, do, "linear")


def test_a_watched_store_is_picked_up_and_what_is_broken_is_tried_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "linear")

    async def do(registry: Registry) -> None:
        watching = asyncio.create_task(watch(registry, 0.02))
        (tmp_path / "broken-1.0.mar").write_bytes(b"no archive")
        put(tmp_path, "linear", "2.0")
        for _ in range(3000):
            await asyncio.sleep(0.02)
            if versions(registry) == {"linear": ["2.0", "1.0"]} and "not a .mar file" in caplog.text:
                break
        tried = caplog.text.count("not a .mar file")
        await asyncio.sleep(0.2)
        assert caplog.text.count("not a .mar file") == tried == 1
        put(tmp_path, "broken")
        for _ in range(3000):
            await asyncio.sleep(0.02)
            if "broken" in registry.models:
                break
        watching.cancel()
        assert versions(registry) == {"linear": ["2.0", "1.0"], "broken": ["1.0"]}

    serving(tmp_path, do)


# A real server, with workers.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("reloading")
    put(folder / "store", "model", says="old", config={"batchSize": 2})
    settings = {"enable_grpc": "false", "default_workers_per_model": "1"}
    with start(Store(folder / "store"), folder / "run", settings=settings) as server:
        yield server


def store_of(server: ServerProcess) -> Path:
    return server.run.parent / "store"


class Load:
    """Clients that ask again and again until the end of the block; every answer's status and text."""

    def __init__(self, server: ServerProcess) -> None:
        self._url = f"{server.urls['inference']}/predictions/model"
        self._stop = threading.Event()
        self.answers: list[tuple[int, str]] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]

    def _ask(self) -> None:
        with requests.Session() as session:
            while not self._stop.is_set():
                answer = session.post(self._url, data="x", timeout=120)
                self.answers.append((answer.status_code, answer.text))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: len(self.answers) > 8)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.server
def test_a_changed_archive_takes_the_place_of_the_old_one_and_no_request_is_lost(
    server: ServerProcess,
) -> None:
    with server.client() as client, Load(server) as load:
        url = f"{server.urls['management']}/models/model?min_worker=2&max_worker=3&synchronous=true"
        assert requests.put(url, timeout=120).status_code == 200
        before = {worker["pid"] for worker in client.describe("model")[0]["workers"]}
        put(store_of(server), "model", says="new", config={"batchSize": 2})
        assert client.reload()["replaced"] == ["model 1.0"]
        count = len(load.answers)
        wait_until(lambda: len(load.answers) > count + 20)
        (described,) = client.describe("model")
    assert {status for status, _ in load.answers} == {200}
    assert load.answers[0] == (200, "old")
    assert {text for _, text in load.answers[-8:]} == {"new"}
    assert (described["minWorkers"], described["maxWorkers"]) == (2, 3)
    assert len(described["workers"]) == 2
    assert before.isdisjoint(worker["pid"] for worker in described["workers"])


@pytest.mark.server
def test_an_archive_that_does_not_load_leaves_the_old_one_serving(server: ServerProcess) -> None:
    broken = write_archive(store_of(server) / ".new", "model", "raise ImportError('not here')", config={})
    with server.client() as client, Load(server) as load:
        text = load.answers[-1][1]
        broken.replace(store_of(server) / broken.name)
        with pytest.raises(RequestError, match=r"(?s)model-1\.0\.mar: .*not here") as caught:
            client.reload()
        assert caught.value.status == 500
        count = len(load.answers)
        wait_until(lambda: len(load.answers) > count + 8)
        assert len(client.describe("model")) == 1
    assert set(load.answers) == {(200, text)}


@pytest.mark.server
def test_the_command_has_a_newer_version_served_with_as_many_workers(server: ServerProcess) -> None:
    put(store_of(server), "model", "2.0", says="newer", config={"batchSize": 2})
    put(store_of(server), "model", says="again", config={"batchSize": 2})
    with Load(server) as load:
        ran = CliRunner().invoke(app, ["reload", "--url", server.urls["management"]])
        assert ran.exit_code == 0, ran.output
        assert "loaded: model 2.0" in ran.output
        count = len(load.answers)
        wait_until(lambda: len(load.answers) > count + 8)
    assert {status for status, _ in load.answers} == {200}
    assert load.answers[-1] == (200, "newer")
    with server.client() as client:
        (described,) = client.describe("model", "2.0")
        assert client.predict("model", json=1, version="1.0") == b"again"
    assert len(described["workers"]) >= 1
    wrong = requests.post(f"{server.urls['management']}/reload?models=modle", timeout=60)
    assert wrong.status_code == 404
    assert "did you mean 'model'?" in wrong.json()["message"]
    elsewhere = "http://127.0.0.1:9/model-3.0.mar"
    wrong = requests.post(f"{server.urls['management']}/reload", params={"models": elsewhere}, timeout=60)
    assert wrong.status_code == 400
    assert "names from the store" in wrong.json()["message"]


@pytest.mark.server
def test_a_scaling_meanwhile_is_not_undone(server: ServerProcess, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    waits = f"""
    import os
    while not os.path.exists({str(gate)!r}):
        time.sleep(0.01)
"""
    slow = write_archive(
        store_of(server) / ".new", "model", HANDLER.format("scaled") + waits, config={"batchSize": 2}
    )
    front = psutil.Process(server.pid)
    before = len(front.children())
    with server.client() as client, ThreadPoolExecutor() as pool:
        slow.replace(store_of(server) / slow.name)
        reloading = pool.submit(client.reload, ["model"])
        wait_until(lambda: len(front.children()) > before)
        url = f"{server.urls['management']}/models/model/1.0?min_worker=3&max_worker=4"
        assert requests.put(url, timeout=60).status_code == 202
        gate.touch()
        assert reloading.result(120)["replaced"] == ["model 1.0"]
        (described,) = client.describe("model", "1.0")
    assert (described["minWorkers"], described["maxWorkers"]) == (3, 4)
