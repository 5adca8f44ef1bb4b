"""Models that share a process run their own code, and have an environment of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from tests.server.archives import write_archive
from torchport.store.folders import Store
from torchport.targets.torchport_serve import ServerProcess, start

pytestmark = pytest.mark.server

HANDLER = """
    import os
    import sys

    def handle(data, context):
        if data is None:
            sys.path.insert(0, os.path.join(context.system_properties["model_dir"], "lib"))
            os.environ["WHOSE"] = context.model_name
            return None
        from parts.deep import inner
        import only_in_lib
        return [[os.getpid(), inner.WHO, only_in_lib.WHO, os.environ["WHOSE"]]]
"""

CONFIG = {"minWorkers": 1, "maxWorkers": 1, "torchport_server": {"shared_worker": "both"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("shared_code")
    store = Store(folder / "store")
    for name in ("north", "south"):
        who = f"WHO = {name!r}\n".encode()
        files = {"parts/deep/inner.py": who, "lib/only_in_lib.py": who}
        write_archive(store.path, name, HANDLER, config=CONFIG, files=files)
    settings = {"enable_model_api": "true"}
    with start(store, folder / "run", settings=settings, arguments=("--ncs", "--no-grpc")) as server:
        yield server


def answer(server: ServerProcess, model: str) -> list[object]:
    url = f"{server.urls['inference']}/predictions/{model}"
    found: list[object] = requests.post(url, data="x", timeout=60).json()
    return found


def test_each_runs_its_own_code(server: ServerProcess) -> None:
    pids = set()
    for _ in range(2):
        for name in ("north", "south"):
            pid, *found = answer(server, name)
            assert found == [name] * 3
            pids.add(pid)
    assert len(pids) == 1


def test_an_archive_with_a_module_of_pythons_is_refused_for_sharing(server: ServerProcess) -> None:
    pid = answer(server, "north")[0]
    store = server.run.parent / "store"
    write_archive(store, "brings", HANDLER, config=CONFIG, files={"statistics.py": b""})
    said = requests.post(
        f"{server.urls['management']}/models?url=brings-1.0.mar&initial_workers=1&synchronous=true",
        timeout=60,
    )
    assert said.status_code == 500
    assert "statistics is a module of this model and of the server's Python" in said.json()["message"]
    assert answer(server, "north")[0] == pid
