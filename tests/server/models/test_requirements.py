"""What the requirements.txt of an archive may make pip do, and that pip ends with the server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.server.archives import write_archive
from tests.server.waiting import PATIENCE_S, wait_until
from torchport.server.errors import ArchiveRefused
from torchport.server.models import installing
from torchport.server.models.requirements import contained_requirements
from torchport.server.models.unpacking import unpack
from torchport.server.settings.settings import ServerSettings

HANDLER = "def handle(data, context): return data"
WHEEL = "wheels/answer-1.0-py3-none-any.whl"


def wheel(path: Path) -> bytes:
    """A wheel with the modules `answer` and `model_handler`."""
    info = "answer-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("answer.py", "ANSWER = 42\n")
        file.writestr("model_handler.py", "raise RuntimeError\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: answer\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        names = ("answer.py", "model_handler.py", f"{info}/METADATA", f"{info}/WHEEL")
        file.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An unpacked model, with a wheel, a page with links, and something outside of it."""
    found = tmp_path / "model"
    for name in (WHEEL, "pages/index.html", "more/base.txt", "src/setup.py"):
        (found / name).parent.mkdir(parents=True, exist_ok=True)
        (found / name).write_text("numpy\n" if name.endswith(".txt") else "")
    (tmp_path / "outside.txt").write_text("numpy\n")
    return found


def read(folder: Path, text: str | bytes) -> list[str]:
    """pip's options, requirements and constraints."""
    (folder / "requirements.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = contained_requirements(folder, "requirements.txt")
    return [*found.options, *found.lines, *(f"-c {line}" for line in found.constraints)]


def test_what_stays_in_the_archive_is_taken(folder: Path) -> None:
    text = f"""
        # A comment, \\
        numpy>=1.26,<3 ; python_version >= "3.11"  # and another
        Pillow==11.0.0 \\
            --hash=sha256:aa11 \\
            --hash=sha256:bb22
        {WHEEL}
        ./{WHEEL}[extra] ; sys_platform == "linux"
        ./src
        --no-index
        --only-binary :all:
        -f wheels
        -r more/base.txt
        -cmore/base.txt
    """
    assert read(folder, text) == [
        "--no-index",
        "--only-binary=:all:",
        f"--find-links={folder / 'wheels'}",
        'numpy<3,>=1.26; python_version >= "3.11"',
        "Pillow==11.0.0 --hash=sha256:aa11 --hash=sha256:bb22",
        str(folder / WHEEL),
        f'{folder / WHEEL}[extra] ; sys_platform == "linux"',
        str(folder / "src"),
        "numpy",
        "-c numpy",
    ]


REACHING_OUT = [
    "--index-url https://example.org/simple",
    "-i https://example.org/simple",
    "-ihttps://example.org/simple",
    "--ind https://example.org/simple",
    "--extra-index-url=https://example.org/simple",
    "--trusted-host example.org",
    "-f https://example.org/wheels",
    "--find-links=..",
    "-f pages",
    "-f pages/index.html",
    "-r ../outside.txt",
    "-r https://example.org/r.txt",
    "-c /etc/passwd",
    "-e .",
    "--editable=src",
    "--global-option=x",
    "--config-settings x=y",
    "--pre --index-url https://example.org",
    "numpy --index-url https://example.org",
    "numpy --global-option=x",
    "numpy --hash=sha256:zz",
    "own @ https://example.org/own.whl",
    "own @ git+https://example.org/own",
    "own @ file:///tmp/own.whl",
    "git+https://example.org/own#egg=own",
    "https://example.org/own.whl",
    "file:///tmp/own.whl",
    "/tmp/own.whl",
    "../outside.whl",
    "wheels/../../outside.whl",
    "missing.whl",
    "numpy\\\n --index-url https://example.org",
    "${SECRET}",
    "own==${SECRET}",
    "-r requirements.txt",
    "'",
    "no requirement",
    b"# coding: utf-7\n",
    b"\n# -*- coding: latin-1 -*-\n",
    b"\xff\xfe",
    "numpy\x0b--index-url https://example.org",
]


@pytest.mark.parametrize("text", REACHING_OUT, ids=repr)
def test_what_reaches_out_of_it_is_refused(folder: Path, text: str | bytes) -> None:
    with pytest.raises(ArchiveRefused, match="requirements.txt"):
        read(folder, text)


# With pip.


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    files = {
        "requirements.txt": f"# of the archive\n{WHEEL}\n".encode(),
        WHEEL: wheel(tmp_path / "answer.whl"),
        # It would be found first if Python looked into the model's folder.
        "pip/__init__.py": b"",
        "pip/__main__.py": f"open({str(tmp_path / 'mark')!r}, 'w')".encode(),
    }
    return write_archive(
        tmp_path / "store", "own", HANDLER, manifest={"requirementsFile": "requirements.txt"}, files=files
    )


def settings_for(archive: Path, **more: object) -> ServerSettings:
    return ServerSettings(model_store=archive.parent, install_py_dep_per_model=True, **more)


def test_a_wheel_of_the_archive_is_found_and_replaces_nothing(
    archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    work = tmp_path / "work"
    work.mkdir()
    model = unpack(archive.name, settings_for(archive), work)
    assert (model.folder / "answer.py").read_text() == "ANSWER = 42\n"
    assert (model.folder / "model_handler.py").read_text() == HANDLER
    assert not (tmp_path / "mark").exists()
    assert "answer 1.0 (of the archive)" in caplog.text
    assert list(work.iterdir()) == [model.folder]


def test_without_the_setting_nothing_is_installed_and_it_is_said(
    archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model = unpack(archive.name, ServerSettings(model_store=archive.parent), tmp_path)
    assert not (model.folder / "answer.py").exists()
    assert "requirements.txt is not installed (install_py_dep_per_model=false)" in caplog.text


def test_the_environment_of_pip_is_that_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_SECRET", "x")
    found = installing._environment(tmp_path, ServerSettings(blacklist_env_vars="OWN_.*"))
    assert "OWN_SECRET" not in found
    assert found["PATH"] == os.environ["PATH"]


@pytest.fixture
def silent_index() -> Iterator[str]:
    """The URL of an index that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


def children_with(word: str, of: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in of.children(recursive=True):
        # It may be about to be reaped, and has no command any more then.
        with contextlib.suppress(psutil.NoSuchProcess):
            if word in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_pip_is_killed_when_its_time_is_up(
    tmp_path: Path, silent_index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installing, "INSTALL_TIMEOUT_S", 0.2)
    monkeypatch.setenv("PIP_INDEX_URL", silent_index)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "requirements.txt").write_text("numpy\n")
    with pytest.raises(ArchiveRefused, match="pip took longer"):
        installing.install_requirements("own", folder, "requirements.txt", ServerSettings())
    assert children_with("pip_process", psutil.Process()) == []


def test_pip_ends_with_the_process_that_started_it(tmp_path: Path, silent_index: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "requirements.txt").write_text("numpy\n")
    program = (
        "from pathlib import Path; from torchport.server.models import installing; "
        "from torchport.server.settings.settings import ServerSettings; "
        f"installing.install_requirements('own', Path({str(folder)!r}), 'requirements.txt', ServerSettings())"
    )
    environment = os.environ | {"PIP_INDEX_URL": silent_index}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as process:
        parent = psutil.Process(process.pid)
        wait_until(lambda: bool(children_with("pip_process", parent)))
        (pip,) = children_with("pip_process", parent)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert psutil.wait_procs([pip], timeout=PATIENCE_S)[1] == []
