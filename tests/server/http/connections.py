"""What the tests of connections do and look at: to be refused, to be cut off, memory that is taken."""

from __future__ import annotations

import json
from pathlib import Path

import psutil

from tests.server.http.raw_requests import PING
from tests.server.waiting import comes_true
from tests.server.wire import Answer, Wire
from torchport.targets.torchport_serve import ServerProcess

MIB = 1 << 20


def wire(server: ServerProcess, api: str = "inference") -> Wire:
    return Wire(server.urls[api])


def refused(server: ServerProcess, data: bytes) -> Answer:
    """The one answer to what is refused; the connection ends with it."""
    with wire(server) as raw:
        raw.try_to_send(data)
        answer = raw.answer()
        assert json.loads(answer.body)["code"] == answer.status
        assert answer.headers["connection"] == "close"
        assert raw.has_ended()
    return answer


def is_answered(server: ServerProcess) -> bool:
    try:
        with wire(server) as raw:
            return raw.send(PING).answer().status == 200
    except (ConnectionError, AssertionError):
        return False


def is_cut_off(server: ServerProcess, raw: Wire) -> bool:
    """Whether the server has no such connection any more, or soon has not."""
    port = raw.socket.getsockname()[1]

    def is_gone() -> bool:
        found = psutil.Process(server.pid).net_connections("tcp")
        return not any(connection.raddr and connection.raddr.port == port for connection in found)

    return comes_true(is_gone)


class Peak:
    """The most memory that a process had since this was made, over what it had then; bytes."""

    def __init__(self, pid: int) -> None:
        self._status, self._before = Path(f"/proc/{pid}/status"), 0
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._before = self._read("VmRSS")

    def _read(self, name: str) -> int:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    @property
    def growth(self) -> int:
        return self._read("VmHWM") - self._before
