"""A name finds its archives; what is named and not there ends `torchport serve`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.archives import write_archive
from torchport.errors import ModelsMissing
from torchport.server.models.named_archives import (
    named_archives,
    parts_of,
    require_named_archives,
    require_store,
)
from torchport.server.settings.settings import ServerSettings

HANDLER = "def handle(data, context):\n    return data and ['x'] * len(data)\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named") / "store"
    for name, version in (("linear", "1.0"), ("linear", "10.0"), ("linear", "9.0"), ("my-digits", "1.0")):
        write_archive(folder, name, HANDLER, version=version)
    write_archive(folder, "plain", HANDLER).rename(folder / "plain.mar")
    return folder


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("linear", ["linear-1.0.mar", "linear-9.0.mar", "linear-10.0.mar"]),
        ("linear@9.0", ["linear-9.0.mar"]),
        ("linear-9.0.mar", ["linear-9.0.mar"]),
        ("my-digits", ["my-digits-1.0.mar"]),
        ("plain", ["plain.mar"]),
        ("linear@2.0", []),
        ("linaer", []),
        ("linear-9.1.mar", []),
        ("", []),
        ("x" * 5000, []),
        ("file:///a/b.mar", ["file:///a/b.mar"]),
    ],
)
def test_a_name_means_its_archives(store: Path, given: str, expected: list[str]) -> None:
    assert named_archives(given, store) == expected


def test_a_path_of_an_archive_in_the_store_means_that_archive(store: Path) -> None:
    assert named_archives(str(store / "linear-1.0.mar"), store) == ["linear-1.0.mar"]


def test_a_list_has_names_and_files() -> None:
    assert list(parts_of(" a , b=c.mar,, ")) == [(None, "a"), ("b", "c.mar")]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("linaer", r"linaer is not in the store .*: did you mean 'linear'\?"),
        ("linear@9.1", r"did you mean 'linear@9.0'\?"),
        ("linear,renamed=linear-9.1.mar", r"linear-9\.1\.mar is not in .*: did you mean 'linear-9.0.mar'\?"),
        ("zzz", "it holds linear, my-digits"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest_name(store: Path, models: str, message: str) -> None:
    with pytest.raises(ModelsMissing, match=message) as caught:
        require_named_archives(ServerSettings(model_store=store, load_models=models))
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("models", ["all", "none", "linear", "linear@1.0", "a=linear-1.0.mar", "plain"])
def test_what_is_there_is_not_refused(store: Path, models: str) -> None:
    require_named_archives(ServerSettings(model_store=store, load_models=models))


def test_a_store_that_is_missing_is_refused_unless_nothing_is_wanted_of_it(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(ModelsMissing, match=r"no model store .*--models none"):
        require_store(ServerSettings(model_store=missing), is_named=False)
    require_store(ServerSettings(model_store=missing, load_models="none"), is_named=False)
    with pytest.raises(ModelsMissing, match=r"no model store .*make the folder") as caught:
        require_store(ServerSettings(model_store=missing, load_models="none"), is_named=True)
    assert caught.value.exit_code == 1


@pytest.mark.server
def test_a_server_that_is_to_serve_what_is_not_there_ends_at_once(store: Path) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "TS_CONFIG_FILE"}
    done = subprocess.run(
        [sys.executable, "-m", "torchport", "serve", "--no-grpc", "--port", "0", "--models", "linaer"],
        cwd=store.parent,
        env=environment | {"TORCHPORT_STORE": str(store)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "linaer is not in the store" in done.stderr
    assert "did you mean 'linear'?" in done.stderr
    assert "Traceback" not in done.stderr
