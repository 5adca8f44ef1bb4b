"""Every archive of a store is proven, whatever becomes of those beside it; nothing that it ran is left."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from tests.archive_edits import resealed
from torchport.archive.local_record import record_path, require_local_parity
from torchport.cli.app import app
from torchport.errors import ArchiveError
from torchport.verify.evidence import FILE, read_evidence
from torchport.verify.local.process import verify_in_child

LONG_S = 60
"""For what ends within a second or a few on an idle machine."""


@pytest.fixture
def archive(linear_archive, store):
    store.path.mkdir()
    return shutil.copy(linear_archive, store.path / linear_archive.name)


@pytest.fixture
def beside(linear_archive, archive):
    """Put an archive before the good one, whose handler begins with other lines."""

    def put(lines):
        code = f"{lines}\n".encode()
        path = archive.parent / "aaa-1.0.mar"
        return resealed(linear_archive, path, {"regressor.py": lambda handler: code + handler})

    return put


def prove(store, *options):
    return CliRunner().invoke(app, ["verify", "--store", str(store.path), *options])


def otherwise(content):
    """Evidence with other numbers in its first case, as from another machine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        path.write_bytes(content)
        evidence = read_evidence(path)
    evidence.cases[0].expected["y"] += np.float64(1)
    return evidence.to_bytes()


def test_the_command_proves_the_whole_store_and_says_no(archive, linear_archive, store):
    good = prove(store)
    assert good.exit_code == 0, good.output
    assert "linear-1.0.mar: onnxruntime on cpu: pass" in good.output
    assert "proven before" in prove(store).output
    assert "proven before" not in prove(store, "--force").output
    resealed(linear_archive, archive, {FILE: otherwise})
    # Nothing in the store is passed over, whatever its name.
    (store.path / "other.mar").write_text("no archive")
    shutil.copy(linear_archive, store.path / "copy.mar")
    mixed = prove(store)
    assert mixed.exit_code != 0
    assert "linear-1.0.mar: onnxruntime on cpu: FAIL" in mixed.output
    assert "error 1 exceeds the bound" in mixed.output
    assert "copy.mar: onnxruntime on cpu: pass" in mixed.output
    assert "not proven on this machine: linear-1.0.mar, other.mar" in str(mixed.exception)
    assert mixed.exception.exit_code == 1
    shutil.rmtree(store.path)
    assert "no archive in" in str(prove(store).exception)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("import sys; sys.exit(0)", "the handler failed: SystemExit: 0"),
        ("import os; os._exit(0)", "its process ended with exit code 0 before it was through"),
        ("import os; os.abort()", "its process was ended by SIGABRT before it was through"),
        ("raise KeyboardInterrupt", "its last words were: .*KeyboardInterrupt"),
        ("import gone", "ModuleNotFoundError: No module named 'gone'"),
        ("print('0' * 10**6, flush=True); import os; os._exit(3)", "exit code 3 .* last words were: 0"),
    ],
)
def test_an_archive_that_ends_its_process_ends_nothing_else(archive, beside, store, capfd, lines, said):
    bad = beside(lines)
    done = prove(store)
    assert "not proven on this machine: aaa-1.0.mar" in str(done.exception)
    assert "linear-1.0.mar: onnxruntime on cpu: pass" in done.output
    require_local_parity(archive, "onnxruntime", device="cpu")
    with pytest.raises(ArchiveError):
        require_local_parity(bad, "onnxruntime", device="cpu")
    errors = done.output + done.stderr
    assert re.search(said, errors, re.DOTALL), errors


def test_an_archive_that_hangs_is_ended_with_all_that_it_started(beside, tmp_path, monkeypatch):
    pids, temporary = tmp_path / "pids", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)  # It is looked up once.
    bad = beside(
        "import os, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(1000)"
    )
    with pytest.raises(ArchiveError, match=r"did not come to an end within 8 s \(--timeout allows it more\)"):
        verify_in_child(bad, timeout_s=8)
    assert all_gone(pids)
    assert not list(temporary.iterdir())


def all_gone(pids):
    """Wait until the processes whose ids a handler has written down are."""
    deadline = time.monotonic() + LONG_S
    while time.monotonic() < deadline:
        alive = [p for p in map(int, pids.read_text().split()) if is_alive(p)]
        if not alive:
            return True
        time.sleep(0.05)
    return False


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_command(archive, beside, store, tmp_path, how):
    pids = tmp_path / "pids"
    beside(
        "import os, time\n"
        f"open({str(pids)!r} + '.part', 'w').write(str(os.getpid()))\n"
        f"os.replace({str(pids)!r} + '.part', {str(pids)!r})\n"
        "time.sleep(1000)"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "torchport", "verify", "--store", str(store.path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as command:
        try:
            deadline = time.monotonic() + LONG_S
            while not pids.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert is_alive(int(pids.read_text()))
            command.send_signal(how)
            assert command.wait(LONG_S) != 0
            assert all_gone(pids)
        finally:
            command.kill()


def test_a_process_that_says_nothing_leaves_no_record(archive, linear_archive):
    """Not even of a time when it had something to say: --force asks what it says now."""
    flag = archive.parent / "broken"
    code = f"import os\nif os.path.exists({str(flag)!r}): os._exit(0)\n".encode()
    resealed(linear_archive, archive, {"regressor.py": lambda handler: code + handler})
    assert verify_in_child(archive).record["passed"]
    assert not verify_in_child(archive).done
    require_local_parity(archive, "onnxruntime", device="cpu")
    flag.touch()
    with pytest.raises(ArchiveError, match="exit code 0"):
        verify_in_child(archive, force=True)
    assert not record_path(archive).exists()


def test_what_a_handler_prints_is_no_progress(archive, beside):
    told = []
    assert verify_in_child(beside("print('of the handler', flush=True)"), tell=told.append).record["passed"]
    assert told == ["aaa-1.0.mar: onnxruntime on cpu", "aaa-1.0.mar: torchscript on cpu"]


def test_what_cannot_be_opened_or_written_fails_alone(archive, store):
    os.mkfifo(store.path / "aaa-1.0.mar")
    (store.path / "bbb-1.0.mar").mkdir()
    (store.path / "ccc-1.0.mar").symlink_to(store.path / "nothing")
    shutil.copy(archive, store.path / "ddd-1.0.mar")
    record_path(store.path / "ddd-1.0.mar").mkdir(parents=True)
    done = prove(store)
    names = "aaa-1.0.mar, bbb-1.0.mar, ccc-1.0.mar, ddd-1.0.mar"
    assert str(done.exception) == f"not proven on this machine: {names}"
    assert "linear-1.0.mar: onnxruntime on cpu: pass" in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["linear", "--timeout", "5"], "--timeout is of a store's archives"),
        (["--device", "cpu"], "--device is of a recipe"),
    ],
)
def test_options_of_the_one_are_not_taken_for_the_other(store, options, said):
    done = prove(store, *options)
    assert done.exit_code == 2
    assert said in done.stderr
