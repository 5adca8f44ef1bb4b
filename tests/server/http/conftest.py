"""Two servers for raw sockets, one for all files here. After every test each answers as before, by the same
processes, and its log has no traceback."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.archives import write_archive
from tests.server.http.connections import MIB, wire
from tests.server.http.raw_requests import VALID
from torchport.store.folders import Store
from torchport.targets.torchport_serve import ServerProcess, start

ODD = """
    import json
    import time

    from ts.protocol.otf_message_handler import send_intermediate_predict_response

    def handle(data, context):
        if data is None:
            return None
        (row,) = data
        asked = row["body"]
        for name, text in asked.get("headers", {}).items():
            context.set_response_header(0, name, text)
        if "status" in asked:
            context.set_response_status(code=asked["status"], idx=0)
        if "type" in asked:
            context.set_response_content_type(0, asked["type"])
        time.sleep(asked.get("sleep", 0))
        for _ in range(asked.get("pieces", 0)):
            send_intermediate_predict_response(["piece"], context.request_ids, "", 200, context)
        return [asked.get("text", "x") * asked.get("times", 1)]
"""
"""A handler that does what a hostile client, or a careless author, might make one do."""


@pytest.fixture(scope="package")
def folder(linear_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform != "linux":
        pytest.skip("reads the server's memory in /proc")
    store = tmp_path_factory.mktemp("store")
    shutil.copy(linear_archive, store)
    write_archive(store, "odd", ODD)
    return store


def started(folder: Path, run: Path, **settings: str) -> ServerProcess:
    settings = {"default_workers_per_model": "1", "max_response_size": str(64 * MIB), **settings}
    return start(Store(folder), run, settings=settings, arguments=("--ncs", "--no-grpc"))


@pytest.fixture(scope="package")
def lenient(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with the limits that it has by default."""
    with started(folder, tmp_path_factory.mktemp("lenient")) as server:
        yield server


@pytest.fixture(scope="package")
def strict(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose limits are met soon."""
    limits = dict.fromkeys(("header_timeout", "body_timeout", "keep_alive_timeout"), "1")
    limits |= {"max_connections": "20", "max_request_memory": str(20 * MIB)}
    with started(folder, tmp_path_factory.mktemp("strict"), **limits) as server:
        yield server


def workers(server: ServerProcess) -> list[str]:
    return Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()


def is_unharmed(server: ServerProcess, before: list[str], said: int) -> None:
    with wire(server) as raw:
        answer = raw.send(VALID).answer()
    assert (answer.status, json.loads(answer.body)) == (200, pytest.approx([14.165], abs=0.1))
    assert server.process.poll() is None
    assert workers(server) == before
    assert "Traceback" not in server.log()[said:]


@pytest.fixture
def server(lenient: ServerProcess) -> Iterator[ServerProcess]:
    before, said = workers(lenient), len(lenient.log())
    yield lenient
    is_unharmed(lenient, before, said)


@pytest.fixture
def impatient(strict: ServerProcess) -> Iterator[ServerProcess]:
    before, said = workers(strict), len(strict.log())
    yield strict
    is_unharmed(strict, before, said)
