import os
import subprocess
import sys

import pytest

from torchport.errors import StaleError, TorchportError
from torchport.store.files import read_json, write_bytes, write_json
from torchport.store.folders import Store, version_key


def test_archives_by_name_and_version_oldest_first(store):
    store.path.mkdir()
    for name in ("linear-1.0.mar", "linear-1.10.mar", "linear-1.9.mar", "two-parts-2.0.mar", "odd.mar"):
        (store.path / name).touch()
    found = store.archives()
    assert list(found) == ["linear", "two-parts"]
    assert list(found["linear"]) == ["1.0", "1.9", "1.10"]


def test_what_is_no_version_number_is_older_than_all_that_are():
    assert sorted(["1.0", "latest", "0.1"], key=version_key) == ["latest", "0.1", "1.0"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TorchportError, match="No space left on device; nothing was changed"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_a_damaged_record_counts_as_none(tmp_path, content):
    (tmp_path / "record.json").write_text(content)
    assert read_json(tmp_path / "record.json") is None


def test_a_second_command_is_told_to_wait(store):
    folder = store.build("linear", "1.0")
    code = f"""
from pathlib import Path
from torchport.store.folders import Store
from torchport.errors import TorchportError
try:
    with Store(Path({str(store.path)!r})).build("linear", "1.0").lock():
        print("locked")
except TorchportError as err:
    print(err)
"""
    command = [sys.executable, "-c", code]
    with folder.lock():
        held = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    free = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "another torchport command" in held
    assert free == "locked\n"


def test_artifacts_are_held_against_their_record(store):
    folder = store.build("linear", "1.0")
    with pytest.raises(StaleError, match="not exported"):
        folder.require_artifacts()
    write_bytes(folder.path / "main.onnx", b"graph")
    digest = "df9a32f1a7d68f3d1d7ac22d0dcb58fa32e2b4d92ee5f4ca3b28d0dd93c4ef38"
    write_json(folder.export, {"inputs": {}, "artifacts": {"main.onnx": {"sha256": digest}}})
    with pytest.raises(StaleError, match="main.onnx has changed since it was exported"):
        folder.require_artifacts()
    (folder.path / "main.onnx").unlink()
    with pytest.raises(StaleError, match="main.onnx is missing"):
        folder.require_artifacts()


def test_a_store_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(TorchportError, match="cannot write"), Store(blocked).build("a", "1").lock():
        pass
