"""What a start serves: the command line comes before the snapshot, and news in the store are seen."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.server.archives import write_archive
from torchport.server.models.management import set_default, unregister
from torchport.server.models.registry import Registry
from torchport.server.models.snapshot import Snapshots, read_last
from torchport.server.models.startup import Start, load_models
from torchport.server.settings.settings import ServerSettings
from torchport.store.folders import Store
from torchport.targets.torchport_serve import start

HANDLER = "def handle(data, context):\n    return data and ['x'] * len(data)\n"


def put(store: Path, *archives: str) -> None:
    """Archives that start no workers, by NAME-VERSION."""
    for archive in archives:
        name, version = archive.rsplit("-", 1)
        write_archive(store, name, HANDLER, version=version, config={"minWorkers": 0, "maxWorkers": 0})


def served(
    folder: Path,
    models: str = "all",
    *,
    named: bool = False,
    then: Callable[[Registry], object] | None = None,
    ncs: bool = False,
) -> dict[str, list[str]]:
    """The versions that a server serves after a start, the default one first; then it ends.

    `then` is done while it runs.
    """
    settings = ServerSettings(model_store=folder / "store", load_models=models)

    async def run() -> dict[str, list[str]]:
        registry = Registry(settings)
        last = None if ncs else read_last(folder / "config")
        await load_models(registry, settings, Start(last=last, folder=folder / "config", named=named))
        found = {
            name: sorted(model.versions, key=lambda number: (number != model.default, number))
            for name, model in registry.models.items()
        }
        if then is not None:
            await then(registry)  # type: ignore[misc]
        if not ncs:
            Snapshots(folder / "config", registry).save()
        await registry.close(0)
        return found

    return asyncio.run(run())


def test_a_newer_version_in_the_store_is_served_after_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "store", "linear-1.0", "other-1.0")
    assert served(tmp_path) == {"linear": ["1.0"], "other": ["1.0"]}
    put(tmp_path / "store", "linear-2.0", "third-1.0")
    caplog.clear()
    assert served(tmp_path) == {"linear": ["2.0", "1.0"], "other": ["1.0"], "third": ["1.0"]}
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any(f"restored from {tmp_path / 'config'}" in line and "--ncs" in line for line in told), told
    assert any("new in the store" in line and "linear-2.0.mar, third-1.0.mar" in line for line in told), told


def test_a_version_that_was_set_as_default_before_a_newer_one_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "store", "linear-1.0", "linear-2.0")
    assert served(tmp_path, then=lambda registry: set_default(registry, "linear", "1.0")) == {
        "linear": ["2.0", "1.0"]
    }
    put(tmp_path / "store", "linear-3.0")
    assert served(tmp_path) == {"linear": ["1.0", "2.0", "3.0"]}
    assert "linear: 1.0 stays the default, as it was set to be; there is 3.0" in caplog.text


def test_what_was_removed_comes_back_only_as_a_new_file(tmp_path: Path) -> None:
    put(tmp_path / "store", "linear-1.0", "linear-2.0", "other-1.0")

    async def remove(registry: Registry) -> None:
        await set_default(registry, "linear", "1.0")
        await unregister(registry, "linear", "2.0")
        await unregister(registry, "other")

    served(tmp_path, then=remove)
    assert served(tmp_path) == {"linear": ["1.0"]}
    put(tmp_path / "store", "other-1.0")
    os.utime(tmp_path / "store" / "other-1.0.mar", ns=(1, 1))
    assert served(tmp_path) == {"linear": ["1.0"], "other": ["1.0"]}


def test_what_the_command_line_names_comes_before_the_snapshot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "store", "linear-1.0", "other-1.0")

    async def scale(registry: Registry) -> None:
        registry.find("linear").settings = registry.find("linear").settings.with_workers(0, 5)

    served(tmp_path, then=scale)
    put(tmp_path / "store", "linear-2.0")
    kept: list[int] = []

    async def look(registry: Registry) -> None:
        kept.append(registry.find("linear", "1.0").settings.max_workers)

    assert served(tmp_path, "linear", named=True, then=look) == {"linear": ["2.0", "1.0"]}
    assert kept == [5]
    assert "that are not served now: other 1.0" in caplog.text
    assert served(tmp_path, "linear@2.0", named=True) == {"linear": ["2.0"]}
    assert served(tmp_path, "renamed=linear@1.0", named=True) == {"renamed": ["1.0"]}
    assert served(tmp_path, "none", named=True) == {}


def test_a_snapshot_without_its_archives_gets_newer_versions_and_no_other_models(tmp_path: Path) -> None:
    put(tmp_path / "store", "linear-1.0", "linear-2.0")
    entry = {"marName": "linear-2.0.mar", "defaultVersion": True, "minWorkers": 0, "maxWorkers": 0}
    last = {"name": "a.cfg", "models": {"linear": {"2.0": entry}}}
    put(tmp_path / "store", "linear-10.0", "other-1.0")
    settings = ServerSettings(model_store=tmp_path / "store")

    async def run() -> dict[str, str]:
        registry = Registry(settings)
        await load_models(registry, settings, Start(last=last))
        await registry.close(0)
        return {f"{name} {number}": m.default for name, m in registry.models.items() for number in m.versions}

    assert asyncio.run(run()) == {"linear 2.0": "10.0", "linear 10.0": "10.0"}


def test_what_failed_is_tried_again_by_the_next_start(tmp_path: Path) -> None:
    put(tmp_path / "store", "linear-1.0")
    broken = tmp_path / "store" / "broken-1.0.mar"
    archive = write_archive(tmp_path / "away", "broken", HANDLER, config={"minWorkers": 0, "maxWorkers": 0})
    whole = archive.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2].ljust(len(whole), b"\0"))
    os.utime(broken, ns=(1, 1))
    assert served(tmp_path) == {"linear": ["1.0"]}
    broken.write_bytes(whole)
    os.utime(broken, ns=(1, 1))
    assert served(tmp_path) == {"linear": ["1.0"], "broken": ["1.0"]}


def test_a_store_that_holds_nothing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "store").mkdir()
    assert served(tmp_path, ncs=True) == {}
    assert "nothing is served" in caplog.text


@pytest.mark.server
def test_a_restart_serves_what_the_command_line_names_and_says_what_it_restored(tmp_path: Path) -> None:
    handler = "def handle(data, context):\n    return data and ['{}'] * len(data)\n"
    store, config = Store(tmp_path / "store"), {"minWorkers": 1, "maxWorkers": 1}
    settings = {"enable_grpc": "false"}

    def answer(*arguments: str) -> tuple[str, str]:
        with start(store, tmp_path / "run", settings=settings, arguments=arguments) as server:
            url = f"{server.urls['inference']}/predictions/linear"
            return requests.post(url, data="x", timeout=60).text, server.log()

    write_archive(store.path, "linear", handler.format("one"), config=config)
    assert answer("--models", "linear")[0] == "one"
    write_archive(store.path, "linear", handler.format("two"), version="2.0", config=config)
    text, log = answer()
    assert text == "two"
    assert "WARNING restored from " in log
    assert answer("--models", "linear@1.0")[0] == "one"
