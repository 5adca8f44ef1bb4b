"""One server that archives are offered to. They are refused with their reason, before any code of theirs
runs: no test may find the mark that it would leave."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.server.models.hostile_archives.registering import refusal, unpacked
from tests.server.models.hostile_archives.writing import (
    Entries,
    written,
)
from torchport.store.folders import Store
from torchport.targets.torchport_serve import ServerProcess, start


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store, the server's temporary folder, and beside them the mark of code that ran."""
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("store", "tmp", "outside"):
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="package")
def running(place: Path, linear_archive: Path) -> Iterator[ServerProcess]:
    shutil.copy(linear_archive, place / "store")
    with start(
        Store(place / "store"),
        place / "run",
        settings={"default_workers_per_model": "1", "enable_model_api": "true"},
        arguments=("--ncs", "--no-grpc"),
        environment={"TMPDIR": str(place / "tmp")},
    ) as server:
        yield server


@pytest.fixture
def server(running: ServerProcess, place: Path) -> Iterator[ServerProcess]:
    """The server; afterwards it is as before, and nothing was written that should not be."""
    before, said = unpacked(place), len(running.log())
    yield running
    ran = (place / "mark").exists()
    (place / "mark").unlink(missing_ok=True)
    with running.client() as client:
        assert client.predict("linear", json=[4.0]) == pytest.approx([14.165], abs=0.1)
        names = list(client.models())
    # So that one that fails fails alone.
    for name in set(names) - {"linear"}:
        requests.delete(f"{running.urls['management']}/models/{name}", timeout=60)
    assert not ran
    assert names == ["linear"]
    assert running.process.poll() is None
    assert unpacked(place) == before
    assert sorted(path.name for path in place.iterdir()) == ["outside", "run", "store", "tmp"]
    assert list((place / "outside").iterdir()) == []
    assert "Traceback" not in running.log()[said:]


@pytest.fixture
def refused(server: ServerProcess, place: Path) -> Iterator[Callable[..., str]]:
    """Write an archive, register it, get the message of its refusal."""
    path = place / "store" / "hostile-1.0.mar"

    def ask(entries: Entries | bytes, **more: Any) -> str:
        if isinstance(entries, bytes):
            path.write_bytes(entries)
        else:
            written(place, entries, **more)
        status, message = refusal(server, url=path.name, initial_workers=1)
        assert status == 400, message
        assert str(place) not in message
        assert len(message) < 1000
        return message

    yield ask
    path.unlink(missing_ok=True)
