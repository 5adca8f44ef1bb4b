"""Archives that TorchServe serves: versions that are numbers, handlers in folders, links in the store."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.server.archives import write_archive
from torchport.store.folders import Store
from torchport.targets.torchport_serve import ServerProcess, start

pytestmark = pytest.mark.server

HANDLER = """
    import os

    def handle(data, context):
        if data is None:
            return None
        names = sorted(os.listdir(context.system_properties["model_dir"]))
        return [{"files": names, "version": context.manifest["model"]["modelVersion"]}] * len(data)

    def entry(data, context):
        return data and ["entry"] * len(data)
"""
BESIDE = b"""
import beside

def handle(data, context):
    return data and [beside.SAID] * len(data)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("archives")


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[ServerProcess]:
    (place / "store").mkdir()
    with start(
        Store(place / "store"),
        place / "run",
        settings={"enable_model_api": "true", "archive_roots": f"/nowhere,{place / 'allowed'}"},
        arguments=("--ncs", "--no-grpc"),
    ) as running:
        yield running


def register(server: ServerProcess, url: str, **asked: Any) -> requests.Response:
    query = {"url": url, "initial_workers": 1, "synchronous": "true"} | asked
    return requests.post(f"{server.urls['management']}/models", params=query, timeout=60)


def described(server: ServerProcess, name: str) -> dict[str, Any]:
    (found,) = requests.get(f"{server.urls['management']}/models/{name}", timeout=60).json()
    return dict(found)


def answer(server: ServerProcess, name: str) -> requests.Response:
    return requests.post(f"{server.urls['inference']}/predictions/{name}", data="x", timeout=60)


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("1.0", 1.0), ("2.10", 2.1)])
def test_a_version_that_is_a_number(server: ServerProcess, place: Path, text: str, value: float) -> None:
    name = f"number{text}"
    path = write_archive(place / "store", name, HANDLER, manifest={"modelVersion": "AS TEXT"})
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content.replace(b'"AS TEXT"', text.encode()))
    assert register(server, path.name).status_code == 200
    assert described(server, name)["modelVersion"] == text
    # The handler reads the manifest as it is.
    assert answer(server, name).json()["version"] == value


@pytest.mark.parametrize(
    ("handler", "files", "said"),
    [
        ("sub/model_handler.py", {}, None),
        ("sub/deeper/model_handler", {}, None),
        ("sub/model_handler.py:entry", {}, "entry"),
        # TorchServe finds none of these: it looks into the archive's own folder alone.
        ("sub/other.py", {"sub/other.py": BESIDE, "sub/beside.py": b"SAID = 'beside'\n"}, "beside"),
        ("code/other.py", {"code/other.py": BESIDE, "code/beside.py": b"SAID = 'code'\n"}, "code"),
    ],
)
def test_a_handler_that_is_named_with_a_folder(
    server: ServerProcess, place: Path, handler: str, files: dict[str, bytes], said: str | None
) -> None:
    name = f"folder-{handler.replace('/', '-').replace(':', '-')}"
    path = write_archive(place / "store", name, HANDLER, manifest={"handler": handler}, files=files)
    response = register(server, path.name)
    assert response.status_code == 200, response.text
    found = answer(server, name)
    assert found.text == said if said else found.json()["version"] == "1.0"


def test_numbers_as_text_and_a_name_with_a_backslash(server: ServerProcess, place: Path) -> None:
    config = {"minWorkers": "1", "maxWorkers": "2", "maxBatchDelay": 50.0, "batchSize": "4"}
    path = write_archive(place / "store", "text", HANDLER, config=config, files={"a\\b.txt": b"x"})
    assert register(server, path.name).status_code == 200
    found = described(server, "text")
    keys = ("minWorkers", "maxWorkers", "maxBatchDelay", "batchSize")
    assert [found[key] for key in keys] == [1, 2, 50, 4]
    files = [name for name in answer(server, "text").json()["files"] if name != "__pycache__"]
    assert files == [
        "MAR-INF",
        "a\\b.txt",
        "model-config.yaml",
        "model_handler.py",
    ]


def test_links_lead_to_where_the_settings_allow(server: ServerProcess, place: Path) -> None:
    store = place / "store"
    # Without a name of its own, a model is called as the link is.
    write_archive(place / "allowed" / "deep", "blob", HANDLER, manifest={"modelName": ""})
    write_archive(place / "elsewhere", "elsewhere", HANDLER)
    write_archive(store / "within", "within", HANDLER)
    (store / "allowed.mar").symlink_to(place / "allowed" / "deep" / "blob-1.0.mar")
    (store / "elsewhere.mar").symlink_to(place / "elsewhere" / "elsewhere-1.0.mar")
    (store / "within.mar").symlink_to("within/within-1.0.mar")
    (store / "twice.mar").symlink_to(place / "allowed" / "out.mar")
    (place / "allowed" / "out.mar").symlink_to(place / "elsewhere" / "elsewhere-1.0.mar")
    assert register(server, "within.mar").status_code == 200
    assert register(server, "allowed.mar").status_code == 200
    assert answer(server, "allowed").status_code == 200
    for name in ("elsewhere.mar", "twice.mar"):
        refused = register(server, name)
        assert refused.status_code == 403
        assert "archive_roots" in refused.json()["message"]
    # The folders of the setting are for links of the store alone.
    for url in (f"file://{place}/allowed/deep/blob-1.0.mar", f"{place}/allowed/out.mar"):
        assert register(server, url, model_name="another").status_code == 403


def test_a_start_timeout_of_nothing(server: ServerProcess, place: Path) -> None:
    path = write_archive(place / "store", "hasty", HANDLER)
    refused = register(server, path.name, startup_timeout=0)
    assert refused.status_code == 500
    assert refused.json()["message"].startswith("Failed to start workers for model hasty version: 1.0")
    assert requests.get(f"{server.urls['management']}/models/hasty", timeout=60).status_code == 404
    assert register(server, path.name, startup_timeout=0, initial_workers=0).status_code == 200
    assert described(server, "hasty")["startupTimeout"] == 0
    assert register(server, path.name, startup_timeout=-1).status_code == 400


def test_a_limit_without_a_value(server: ServerProcess) -> None:
    url = f"{server.urls['management']}/models"
    everything = requests.get(url, timeout=60)
    empty = requests.get(f"{url}?limit=&next_page_token=", timeout=60)
    assert (empty.status_code, json.loads(empty.text)) == (200, everything.json())
