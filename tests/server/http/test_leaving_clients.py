"""Clients that go, in the middle of whatever, leave nothing behind."""

from __future__ import annotations

import resource
import socket
import struct

import psutil
import pytest

from tests.server.http.connections import MIB, Peak, is_answered, wire
from tests.server.http.raw_requests import PING, POST, VALID, odd
from tests.server.waiting import comes_true
from tests.server.wire import Wire
from torchport.targets.torchport_serve import ServerProcess

pytestmark = pytest.mark.server


def reset(raw: Wire) -> None:
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.socket.close()


LEAVING = {
    "nothing": b"",
    "half a header": b"GET /pi",
    "half a body": VALID[:-2],
    "a whole request": VALID,
    "a slow request": odd(sleep=0.05),
    "requests ahead": odd(sleep=0.05) * 3 + VALID[:-2],
    "a stream": odd(pieces=50),
    "a large answer": odd(text="x" * 1000, times=5_000),
}


@pytest.mark.parametrize("case", LEAVING)
@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_a_client_that_goes_leaves_nothing_behind(server: ServerProcess, case: str, how: str) -> None:
    gone = []
    for _ in range(10):
        raw = wire(server).send(LEAVING[case])
        if how == "half":
            raw.socket.shutdown(socket.SHUT_WR)
        elif how == "reset":
            reset(raw)
            continue
        gone.append(raw)
    for raw in gone:
        raw.socket.close()
    # They are accepted in their order: by now none waits for that, to be counted too late.
    assert is_answered(server)
    process = psutil.Process(server.pid)
    # Sooner than body_timeout, which would end what is not whole in any case; three are those it listens on.
    assert comes_true(lambda: len(process.net_connections("tcp")) == 3, seconds=20.0)


def test_bodies_of_those_who_went_do_not_stay(server: ServerProcess) -> None:
    peak = Peak(server.pid)
    for _ in range(100):
        reset(wire(server).send(POST + b"Content-Length: 6000000\r\n\r\n" + bytes(5_900_000)))
    assert peak.growth < 150 * MIB


def test_a_thousand_idle_connections_disturb_nobody(server: ServerProcess) -> None:
    peak = Peak(server.pid)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    idle = [wire(server) for _ in range(min(1000, soft // 2))]
    for raw in idle[::2]:
        raw.send(b"GET /ping HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1000)
    with wire(server) as raw:
        assert raw.send(VALID).answer().status == 200
    for raw in idle:
        raw.socket.close()
    assert peak.growth < 64 * MIB


def test_descriptors_that_run_out_are_had_again(server: ServerProcess) -> None:
    process = psutil.Process(server.pid)
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (process.num_fds() + 10, hard))
    held = []
    try:
        for _ in range(40):
            held.append(wire(server))
        assert held[0].send(PING).answer().status == 200
        for raw in held:
            raw.socket.close()
        assert comes_true(lambda: is_answered(server)), "no connection is accepted any more"
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (soft, hard))
