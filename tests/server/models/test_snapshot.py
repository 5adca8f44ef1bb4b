"""Models are, after a restart, what they were: from files that TorchServe could read, too."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import requests

from tests.server.archives import write_archive
from torchport.errors import ServerError
from torchport.properties import read_properties
from torchport.server.models.known_archives import KnownArchives
from torchport.server.models.registry import Registry
from torchport.server.models.settings import ModelSettings
from torchport.server.models.snapshot import KEPT, Snapshots, read_last
from torchport.store.folders import Store
from torchport.targets.torchport_serve import ServerProcess, start

pytestmark = pytest.mark.server

HANDLER = """
    def handle(data, context):
        return data and [f"{context.model_name} {context.manifest['model']['modelVersion']}" for _ in data]
"""


def registry(**versions: int) -> Registry:
    """As much of a registry as a snapshot looks at: one model, its versions with so many workers."""
    found = {
        number: SimpleNamespace(
            model=SimpleNamespace(url=f'file:///störe/a\\b "{number}".mar', handler_given=False),
            settings=ModelSettings(
                min_workers=workers,
                max_workers=workers + 1,
                batch_size=4,
                max_batch_delay=10,
                response_timeout=20,
                startup_timeout=30,
            ),
        )
        for number, workers in versions.items()
    }
    default = next(iter(versions), "")
    models = {"model": SimpleNamespace(versions=found, default=default)}
    return cast(Registry, SimpleNamespace(models=models, unrestored={}, known=KnownArchives()))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    Snapshots(tmp_path, registry(v1=1, v2=0)).save()
    last = read_last(tmp_path)
    assert last is not None
    assert last["modelCount"] == 1
    assert last["models"]["model"]["v1"] == {
        "defaultVersion": True,
        "marName": 'file:///störe/a\\b "v1".mar',
        "minWorkers": 1,
        "maxWorkers": 2,
        "batchSize": 4,
        "maxBatchDelay": 10,
        "responseTimeout": 20,
        "startupTimeout": 30,
    }
    assert last["models"]["model"]["v2"]["defaultVersion"] is False
    # TorchServe reads it as a config.properties of one key, and as ASCII.
    (path,) = tmp_path.glob("*-snapshot.cfg")
    assert list(read_properties(path)) == ["model_snapshot"]
    assert path.read_bytes().isascii()


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    names = [f"20200101-00000000{number}-snapshot.cfg" for number in range(KEPT + 3)]
    for name in names:
        (tmp_path / name).write_text("model_snapshot={}")
    (tmp_path / "mine.cfg").write_text("x")
    Snapshots(tmp_path, registry(v1=1)).save()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left[: KEPT - 1] == names[-KEPT + 1 :]
    assert len(left) == KEPT + 1
    assert "mine.cfg" in left


@pytest.mark.parametrize("future", ["20991231-235959999", "99991231-235959999", "99999999-999999999"])
def test_a_clock_that_was_set_back_loses_no_snapshot(tmp_path: Path, future: str) -> None:
    for number in range(KEPT):
        Snapshots(tmp_path, registry(**{f"old{number}": 1})).save()
        time.sleep(0.002)
    newest = max(tmp_path.iterdir())
    newest.rename(tmp_path / f"{future}-snapshot.cfg")
    for number in range(KEPT + 1):
        Snapshots(tmp_path, registry(**{f"new{number}": 1})).save()
        last = read_last(tmp_path)
        assert last is not None
        assert list(last["models"]["model"]) == [f"new{number}"]
    assert len(list(tmp_path.iterdir())) == KEPT


def test_a_disk_that_is_full_costs_the_snapshot_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    Snapshots(tmp_path / "file", registry(v1=1)).save()
    assert "no snapshot was written" in caplog.text


def test_a_slow_disk_holds_no_event_loop_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    begun, release = threading.Event(), threading.Event()

    def write_slowly(path: Path, content: bytes) -> None:
        begun.set()
        assert release.wait(60)
        written.append(content)

    monkeypatch.setattr("torchport.server.models.snapshot.write_bytes", write_slowly)
    known = registry(v1=1)
    snapshots = Snapshots(tmp_path, known)

    async def change() -> None:
        snapshots.save_soon()
        assert await asyncio.to_thread(begun.wait, 60)
        for workers in (2, 3, 4):
            known.models = registry(v1=workers).models
            snapshots.save_soon()
        waiting = asyncio.create_task(snapshots.written())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        release.set()
        await waiting

    asyncio.run(change())
    # The first one, and of those that came while it was written the last one.
    assert [b'"minWorkers": 1' in content for content in written] == [True, False]
    assert b'"minWorkers": 4' in written[-1]


DAMAGED = [
    b"",
    b"model_snapshot=",
    b"model_snapshot={",
    b"model_snapshot=3",
    b"model_snapshot={}",
    b'model_snapshot={"models": 3}',
    b'model_snapshot={"models": {"a": 3}}',
    b'model_snapshot={"models": {"a": {"1.0": {}}}}',
    b'model_snapshot={"models": {"a": {"1.0": {"marName": "a.mar", "minWorkers": 1e9}}}}',
    b"model_snapshot=" + b"[" * 100_000,
    b"other=1",
    b"\xff\xfe",
    b"\0" * 100,
]


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: repr(content[:60]))
def test_a_damaged_snapshot_is_passed_over_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    assert read_last(tmp_path) is None
    Snapshots(tmp_path, registry(v1=1)).save()
    (tmp_path / "29990101-000000000-snapshot.cfg").write_bytes(content)
    last = read_last(tmp_path)
    assert last is not None
    assert "model" in last["models"]
    assert "29990101-000000000-snapshot.cfg" in caplog.text


# A real server.


def served(store: Path, run: Path, *arguments: str) -> ServerProcess:
    return start(
        Store(store),
        run,
        settings={"default_workers_per_model": "1", "enable_model_api": "true"},
        arguments=("--no-grpc", *arguments),
    )


def state(server: ServerProcess) -> dict[str, dict[str, Any]]:
    """What is kept of each version, by model and version; and who answers who names none."""
    kept = ("modelUrl", "minWorkers", "maxWorkers", "batchSize", "responseTimeout", "startupTimeout")
    found = {}
    with server.client() as client:
        for name in client.models():
            for version in client.describe(name):
                found[f"{name} {version['modelVersion']}"] = {field: version[field] for field in kept}
            found[name] = {"default": client.predict(name, json=1)}
    return found


def test_what_was_registered_scaled_and_removed_survives_a_restart_and_a_kill(tmp_path: Path) -> None:
    store, run = tmp_path / "store", tmp_path / "run"
    for name, version in (("kept", "1.0"), ("kept", "2.0"), ("gone", "1.0"), ("late", "1.0")):
        write_archive(store, name, HANDLER, version=version)
    with served(store, run) as server:
        fresh = state(server)
        assert fresh["kept"] == {"default": b"kept 2.0"}
        url = f"{server.urls['management']}/models"
        asked = {"url": "late-1.0.mar", "model_name": "renamed", "batch_size": 5, "initial_workers": 1}
        for method, path, query in (
            ("DELETE", "/gone", {}),
            ("DELETE", "/late", {}),
            ("POST", "", asked | {"response_timeout": 77}),
            ("PUT", "/kept/1.0", {"min_worker": 2, "max_worker": 3, "synchronous": "true"}),
            ("PUT", "/kept/1.0/set-default", {}),
        ):
            assert requests.request(method, url + path, params=query, timeout=60).status_code == 200, path
        before = state(server)
        assert (before["kept 1.0"]["minWorkers"], before["kept 1.0"]["maxWorkers"]) == (2, 3)
        assert before["kept"] == {"default": b"kept 1.0"}
        assert before["renamed"] == {"default": b"renamed 1.0"}
        assert set(before) == {"kept 1.0", "kept 2.0", "kept", "renamed 1.0", "renamed"}
    with served(store, run) as server:
        assert state(server) == before
        server.process.kill()
        server.process.wait()
    with served(store, run) as server:
        assert state(server) == before
    with served(store, run, "--ncs") as server:
        assert state(server) == fresh
    # What was forgotten once is not written over: without the option it is there again.
    with served(store, run) as server:
        assert state(server) == before


def test_an_archive_that_is_gone_costs_no_other_model_its_place(tmp_path: Path) -> None:
    store, run = tmp_path / "store", tmp_path / "run"
    for name in ("one", "two"):
        write_archive(store, name, HANDLER)
    with served(store, run):
        pass
    (store / "one-1.0.mar").unlink()
    snapshot = json.dumps(read_last(run / "config"))
    config = tmp_path / "config.properties"
    config.write_text(f"model_snapshot={snapshot}\nenable_grpc=false\n")
    # `start` wants every model; what is served besides is told by the log.
    with pytest.raises(Exception, match="Model not found at: one-1.0.mar"):
        start(Store(store), tmp_path / "again", config=config, arguments=("--ncs",))
    assert "of two 1.0 is ready" in (tmp_path / "again" / "server.log").read_text()


def test_another_handler_is_remembered_and_a_lost_archive_is_not_forgotten(tmp_path):
    store = Store(tmp_path / "store")
    files = {"other.py": b"def handle(data, context):\n    return ['other'] * len(data or [])\n"}
    own = "def handle(data, context):\n    return ['own'] * len(data or [])\n"
    config = {"minWorkers": 1, "maxWorkers": 1}
    for name in ("swapped", "lost"):
        write_archive(store.path, name, own, config=config, files=files)
    settings = {"enable_grpc": "false", "enable_model_api": "true", "load_models": "none"}
    options = {"settings": settings, "arguments": ()}
    with start(store, tmp_path / "run", **options) as server:
        management = server.urls["management"]
        for query in ("url=swapped-1.0.mar&handler=other.py", "url=lost-1.0.mar"):
            assert requests.post(f"{management}/models?{query}", timeout=30).status_code == 200
    away = tmp_path / "lost-1.0.mar"
    (store.path / away.name).rename(away)
    with pytest.raises(ServerError, match=r"lost-1\.0\.mar"):
        start(store, tmp_path / "run", **options)
    away.rename(store.path / away.name)
    with start(store, tmp_path / "run", **options) as server:
        for name, answer in (("swapped", "other"), ("lost", "own")):
            url = f"{server.urls['inference']}/predictions/{name}"
            assert requests.post(url, data="x", timeout=30).text == answer


def test_a_server_that_starts_writes_nothing_before_all_is_there_again(tmp_path):
    store = Store(tmp_path / "store")
    for name in ("one", "two", "three"):
        write_archive(store.path, name, HANDLER, config={"minWorkers": 1, "maxWorkers": 1})
    options = {"settings": {"enable_grpc": "false"}, "arguments": ()}
    start(store, tmp_path / "run", **options).stop()
    snapshots = sorted((tmp_path / "run" / "config").glob("*-snapshot.cfg"))
    before = read_last(tmp_path / "run" / "config")
    assert before is not None
    assert set(before["models"]) == {"one", "two", "three"}
    for older in snapshots[:-1]:
        older.unlink()
    start(store, tmp_path / "run", **options).stop()
    written = sorted((tmp_path / "run" / "config").glob("*-snapshot.cfg"))
    assert len(written) > 1
    for path in written:
        models = json.loads(read_properties(path)["model_snapshot"])["models"]
        assert set(models) == {"one", "two", "three"}
