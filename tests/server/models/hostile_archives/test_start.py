"""Broken archives in the store of a server that starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.server.models.hostile_archives.writing import (
    MANIFEST,
    bomb,
    manifest,
    named,
    whole,
    written,
)
from torchport.errors import ServerError
from torchport.store.folders import Store
from torchport.targets.torchport_serve import start

pytestmark = pytest.mark.server


def test_broken_archives_cost_no_other_its_place_when_a_server_starts(
    tmp_path: Path, linear_archive: Path
) -> None:
    """`load_models=all`: what is refused is named with its reason, the rest is served."""
    place = tmp_path
    store = place / "store"
    store.mkdir()
    broken = {
        "cut": whole(place)[:-30],
        "outside": written(place, {named("../escaped"): b"x"}).read_bytes(),
        "bomb": written(
            place, {MANIFEST: manifest(configFile="c.yaml"), "c.yaml": bomb().encode()}
        ).read_bytes(),
        "nameless": written(place, {MANIFEST: manifest(modelName="a/b")}).read_bytes(),
        "none": b"",
    }
    (store / "hostile-1.0.mar").unlink()
    for name, content in broken.items():
        (store / f"{name}-1.0.mar").write_bytes(content)
    (store / "folder-1.0.mar").mkdir()
    (store / "link-1.0.mar").symlink_to("/etc/passwd")
    shutil.copy(linear_archive, store)
    # Whoever starts a server wants all of its models, and is told otherwise; the server itself goes on.
    with pytest.raises(ServerError, match="not every model is served") as caught:
        start(
            Store(store),
            place / "run",
            settings={"default_workers_per_model": "1"},
            arguments=("--ncs", "--no-grpc"),
        )
    for name in (*broken, "folder", "link"):
        assert f"{name}-1.0.mar" in str(caught.value)
    log = (place / "run" / "server.log").read_text()
    assert "worker 9000 of linear 1.0 is ready" in log
    assert "Traceback" not in log
    assert not (place / "mark").exists()
