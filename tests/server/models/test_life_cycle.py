"""What acts after a wait acts on the version that it began with, whoever has its name by then."""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.server.archives import write_archive
from tests.server.waiting import PATIENCE_S, wait_until
from torchport.store.folders import Store
from torchport.targets.torchport_serve import ServerProcess, start

pytestmark = pytest.mark.server

HANDLER = """
    import os
    import time

    while not os.path.exists(GATE):
        time.sleep(0.01)

    def handle(data, context):
        return data and ["answered"] * len(data)
"""


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: a model loads once a file with its name is there."""
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def server(gates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("life_cycle")
    store = Store(folder / "store")
    config = {"startupTimeout": 3}
    for name, versions in (("twice", ["1.0"]), ("rolled", ["1.0", "2.0", "3.0"])):
        for version in versions:
            gate = str(gates / f"{name}-{version}")
            handler = textwrap.dedent(HANDLER).replace("GATE", repr(gate))
            write_archive(store.path, name, handler, version=version, config=config)
    settings = {"enable_grpc": "false", "enable_model_api": "true", "load_models": "none"}
    with start(store, folder / "run", settings=settings) as server:
        yield server


def register(server: ServerProcess, archive: str, **more: str) -> requests.Response:
    asked = {"url": archive, "initial_workers": "1", **more}
    return requests.post(f"{server.urls['management']}/models", params=asked, timeout=PATIENCE_S)


def test_a_late_registration_leaves_another_ones_model_alone(server: ServerProcess, gates: Path) -> None:
    model = f"{server.urls['management']}/models/twice"
    first: list[requests.Response] = []
    late = threading.Thread(target=lambda: first.append(register(server, "twice-1.0.mar")))
    late.start()
    wait_until(lambda: requests.get(model, timeout=PATIENCE_S).status_code == 200)
    assert requests.delete(model, timeout=PATIENCE_S).status_code == 200
    (gates / "twice-1.0").touch()
    assert register(server, "twice-1.0.mar").status_code == 200
    late.join(PATIENCE_S)
    assert first[0].status_code == 409, first[0].text
    assert "unregistered" in first[0].json()["message"]
    answer = requests.post(f"{server.urls['inference']}/predictions/twice", data="x", timeout=PATIENCE_S)
    assert answer.text == "answered"


def test_the_last_of_two_requests_chooses_the_default(server: ServerProcess, gates: Path) -> None:
    for version in ("1.0", "2.0"):
        (gates / f"rolled-{version}").touch()
        assert register(server, f"rolled-{version}.mar").status_code == 200
    assert register(server, "rolled-3.0.mar", synchronous="false").status_code == 202
    model = f"{server.urls['management']}/models/rolled"

    def choose(version: str) -> requests.Response:
        return requests.put(f"{model}/{version}/set-default", timeout=PATIENCE_S)

    first: list[requests.Response] = []
    late = threading.Thread(target=lambda: first.append(choose("3.0")))
    late.start()
    # The first one waits for its version; scaling is answered after it was taken.
    scale = {"min_worker": "1", "max_worker": "2"}
    for _ in range(3):
        assert requests.put(f"{model}/1.0", params=scale, timeout=PATIENCE_S).status_code == 202
    assert choose("2.0").status_code == 200
    (gates / "rolled-3.0").touch()
    late.join(PATIENCE_S)
    assert first[0].status_code == 409, first[0].text
    assert requests.get(model, timeout=PATIENCE_S).json()[0]["modelVersion"] == "2.0"


def test_a_version_that_cannot_load_does_not_become_the_default(server: ServerProcess, gates: Path) -> None:
    (gates / "rolled-3.0").unlink(missing_ok=True)
    model = f"{server.urls['management']}/models/rolled"
    requests.delete(f"{model}/3.0", timeout=PATIENCE_S)
    assert register(server, "rolled-3.0.mar", synchronous="false").status_code == 202
    refused = requests.put(f"{model}/3.0/set-default", timeout=PATIENCE_S)
    assert refused.status_code == 500, refused.text
    assert "did not load its model within 3 s" in refused.json()["message"]
    assert requests.get(model, timeout=PATIENCE_S).json()[0]["modelVersion"] != "3.0"
