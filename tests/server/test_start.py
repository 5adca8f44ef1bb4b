"""A server's start: what it imports before its first worker is asked for, and what it refuses before that."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import torchport_runtime
from tests.server.archives import write_archive
from torchport.__main__ import main

HEAVY = {
    "PIL",
    "email",
    "google.protobuf",
    "grpc",
    "http.server",
    "multiprocessing",
    "numpy",
    "onnxruntime",
    "prometheus_client",
    "psutil",
    "rich",
    "torch",
    "torchport.recipe",
    "torchport.server.listeners",
}
"""What takes long to import. `typer` and what it imports is the command line's price."""


def imported(code: str) -> set[str]:
    """Names of all modules of a new process after running the code."""
    code = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", ["import torchport.server.main", "import torchport.cli.serve"])
def test_models_are_registered_before_heavy_modules_are_imported(code: str) -> None:
    assert not imported(code) & HEAVY


def test_serve_is_the_only_command_that_is_loaded_to_serve() -> None:
    code = """import sys
sys.argv = ["torchport", "serve", "--help"]
from torchport.__main__ import main
try:
    main()
except SystemExit:
    pass"""
    found = imported(code)
    assert "torchport.cli.serve" in found
    assert "torchport.cli.app" not in found


@pytest.mark.parametrize("arguments", [["serve", "--help"], ["serve", "--prot", "80"]])
def test_serve_by_itself_answers_as_among_the_other_commands(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchport.cli.app import main as all_commands

    said = []
    for command in (main, all_commands):
        monkeypatch.setattr(sys, "argv", ["torchport", *arguments])
        with pytest.raises(SystemExit) as ended:
            command()
        got = capsys.readouterr()
        # Among the other commands its name is taken from the process, which is pytest's here.
        words = (got.out + got.err).replace("python -m pytest.torchport", "torchport").split()
        said.append((ended.value.code, words))
    assert said[0] == said[1]


def test_a_handler_imports_only_what_it_uses_of_the_runtime() -> None:
    assert not imported("import torchport_runtime") & {"numpy", "PIL"}
    found = imported("import torchport_runtime\nclass Mine(torchport_runtime.Handler): pass")
    assert not found & {"PIL", "multiprocessing", "torchport_runtime.shadow.shadow"}


@pytest.mark.parametrize("name", torchport_runtime.__all__)
def test_the_runtime_has_every_name_that_it_promises(name: str) -> None:
    assert getattr(torchport_runtime, name).__name__ == name


def test_modules_of_the_runtime_are_its_attributes() -> None:
    code = """import torchport_runtime as runtime
runtime.images.decode_image, runtime.errors.BadRequest, runtime.requests
from torchport_runtime import *
Handler, write_arrays
try:
    runtime.nothing
except AttributeError as err:
    assert "nothing" in str(err)
else:
    raise AssertionError"""
    imported(code)


def test_a_taken_address_is_refused_before_a_worker_starts(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_archive(store, "echo", "def handle(data, context):\n    return data\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        config = tmp_path / "config.properties"
        config.write_text(
            f"inference_address=http://127.0.0.1:{port}\nmanagement_address=http://127.0.0.1:0\n"
            f"metrics_address=http://127.0.0.1:0\nenable_grpc=false\nmodel_store={store}\n"
        )
        command = ("-m", "torchport", "serve", "--ts-config", str(config), "--run", str(tmp_path / "run"))
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env=dict(os.environ), timeout=60
        )
    assert done.returncode == 2
    assert f"cannot listen on http://127.0.0.1:{port}" in done.stderr
    assert "echo" not in done.stderr
