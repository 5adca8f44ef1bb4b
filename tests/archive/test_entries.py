"""An archive is unpacked where there is space for it."""

from __future__ import annotations

import errno
import shutil
import zipfile
from pathlib import Path

import pytest

from torchport.archive.entries import RESERVE, extract, open_archive
from torchport.errors import ArchiveError

SIZES = {"a": 100_000, "b/c": 1, "d": 0}
BLOCKS = (25 + 1) * 4096


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "x.mar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, size in SIZES.items():
            file.writestr(name, bytes(size))
    return path


def with_free_bytes(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    used = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: used._replace(free=number))


def test_what_does_not_fit_is_not_begun(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with_free_bytes(monkeypatch, BLOCKS + RESERVE - 1)
    with pytest.raises(OSError, match="are free") as caught:
        extract(archive, folder)
    assert caught.value.errno == errno.ENOSPC
    assert list(folder.iterdir()) == []
    with_free_bytes(monkeypatch, BLOCKS + RESERVE)
    extract(archive, folder)
    assert {name: (folder / name).stat().st_size for name in SIZES} == SIZES


def test_a_backslash_is_part_of_a_name(tmp_path: Path) -> None:
    """As TorchServe has it on this system: a file of the model's folder, in no other folder."""
    path, folder = tmp_path / "x.mar", tmp_path / "folder"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a\\b.txt", b"x")
        file.writestr("c/d\\e", b"y")
    folder.mkdir()
    extract(path, folder)
    found = {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}
    assert found == {"a\\b.txt", "c/d\\e"}
    assert [each.name for each in sorted(tmp_path.iterdir())] == ["folder", "x.mar"]


def test_only_what_is_asked_for_needs_space(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free_bytes(monkeypatch, 4096 + RESERVE)
    extract(archive, tmp_path, only={"b/c"})
    assert not (tmp_path / "a").exists()


def test_entries_that_grow_too_much_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them grows by less than 1000 times."""
    monkeypatch.setattr("torchport.archive.entries.MAY_GROW", 2 << 20)
    path = tmp_path / "x.mar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in "abcd":
            file.writestr(name, bytes(1 << 19))
    with open_archive(path):
        pass
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("e", b"x")
    with pytest.raises(ArchiveError, match="it grows over 100 times, to 2 MiB"), open_archive(path):
        pass
