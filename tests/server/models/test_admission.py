"""`require_goals`: what missed its recipe's goals, or was never checked, is not served."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.server.archives import write_archive
from torchport.archive.contents import inspect_archive
from torchport.server.errors import ArchiveRefused
from torchport.server.models.admission import require_trusted
from torchport.server.settings.settings import ServerSettings
from torchport.store.folders import Store
from torchport.store.hashing import sha256_file
from torchport.store.serving_record import keep_record

RELEASES = Path(__file__).parent.parent.parent / "archives_of_releases"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive under its own name in a store."""
    (given,) = RELEASES.glob("linear-*.mar")
    contents = inspect_archive(given)
    store = Store(tmp_path_factory.mktemp("store"))
    return Path(shutil.copy(given, store.archive(contents.name, contents.version)))


def checked(archive: Path, **more: Any) -> None:
    contents = inspect_archive(archive)
    record = {
        "server": "torchport 0.1.0",
        "archive_sha256": sha256_file(archive),
        "backend": "onnxruntime",
        "precision": "float32",
        "passed": True,
        "metrics": {"r2": 0.9},
        "missed": [],
    }
    keep_record(Store(archive.parent).build(contents.name, contents.version), record | more)


def admit(archive: Path) -> bool:
    settings = ServerSettings(model_store=archive.parent, require_goals=True)
    return require_trusted(inspect_archive(archive), settings)


def test_only_what_met_its_goals_is_served(archive: Path) -> None:
    with pytest.raises(
        ArchiveRefused, match="no check of onnxruntime in this store .* torchport check linear"
    ):
        admit(archive)
    checked(archive)
    assert admit(archive)
    checked(archive, missed=["r2 is 0.9, >= 0.95 is wanted"])
    with pytest.raises(ArchiveRefused, match="it missed its goals: r2 is 0.9"):
        admit(archive)
    assert require_trusted(inspect_archive(archive), ServerSettings(model_store=archive.parent))
    # One server's check of it does not outweigh another's.
    checked(archive, server="TorchServe 0.12.0")
    with pytest.raises(ArchiveRefused, match="it missed its goals"):
        admit(archive)
    checked(archive, passed=False)
    with pytest.raises(ArchiveRefused, match="no check of onnxruntime"):
        admit(archive)
    checked(archive)
    assert admit(archive)


def test_a_check_of_another_precision_shows_nothing(archive: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(archive, tmp_path / archive.name))
    checked(copy, precision="float16")
    with pytest.raises(ArchiveRefused, match="no check of onnxruntime"):
        admit(copy)


def test_an_archive_that_torchport_did_not_make_is_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path, "other", "def handle(data, context):\n    return data\n")
    with pytest.raises(ArchiveRefused, match="no parity.json, and require_goals=true"):
        admit(path)
