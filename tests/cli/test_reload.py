"""What `torchport ship` says last fits what is running; `torchport reload` finds the server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from torchport.cli.app import app
from torchport.cli.reload import serving_hint
from torchport.store.files import write_json
from torchport.targets.running import running_servers

URL, MANAGEMENT = "http://127.0.0.1:8080", "http://127.0.0.1:8081"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs(folder: Path, port: int = 8080, **more: Any) -> Path:
    """The record of a server, which this process stands for."""
    record = {
        "pid": os.getpid(),
        "inference": f"http://127.0.0.1:{port}",
        "management": f"http://127.0.0.1:{port + 1}",
        "store": str(folder / "model_store"),
        "watches": False,
    }
    path = folder / ".run" / f"serve-{port}" / "server.json"
    path.parent.mkdir(parents=True)
    write_json(path, record | more)
    return path


STORE = Path("model_store")


def test_where_nothing_runs_the_last_line_says_how_to_serve(folder: Path) -> None:
    assert serving_hint("linear", STORE).startswith("serve it: torchport serve; then")
    assert "torchport serve --store elsewhere;" in serving_hint("linear", Path("elsewhere"))


def test_where_a_server_runs_on_the_store_it_is_to_reload(folder: Path) -> None:
    runs(folder, 9080)
    said = serving_hint("linear", STORE)
    assert "torchport reload; then: torchport query linear --url http://127.0.0.1:9080" in said
    assert serving_hint("linear", Path("elsewhere")).startswith("serve it: torchport serve --store elsewhere")
    runs(folder, 7080, store=str(folder / "elsewhere"))
    assert "torchport reload --url http://127.0.0.1:9081;" in serving_hint("linear", STORE)


def test_a_server_that_watches_its_store_needs_no_command(folder: Path) -> None:
    runs(folder, watches=True)
    said = serving_hint("linear", STORE)
    assert "picks it up by itself" in said
    assert "torchport reload" not in said


def test_a_record_that_was_left_behind_is_no_server(folder: Path) -> None:
    path = runs(folder)
    assert len(running_servers(Path(".run"))) == 1
    os.utime(path, (1, 1))  # Its process ended; a later one has its number.
    assert running_servers(Path(".run")) == []
    assert serving_hint("linear", STORE).startswith("serve it:")


def test_of_several_servers_one_has_to_be_named(folder: Path) -> None:
    runs(folder, 8080)
    runs(folder, 9080)
    ran = CliRunner().invoke(app, ["reload"])
    assert ran.exit_code != 0
    assert "--url http://127.0.0.1:8081 or --url http://127.0.0.1:9081" in str(ran.exception)


def test_without_a_server_it_says_so(folder: Path) -> None:
    ran = CliRunner().invoke(app, ["reload", "--url", "http://127.0.0.1:1"])
    assert "no server answers at http://127.0.0.1:1" in str(ran.exception)
