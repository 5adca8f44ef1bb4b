"""Clients that are slow, or wait, or are too many at once."""

from __future__ import annotations

import socket
import time

import pytest

from tests.server.http.connections import is_answered, is_cut_off, wire
from tests.server.http.raw_requests import CHUNKED, PING, POST, odd
from tests.server.waiting import comes_true
from tests.server.wire import PATIENCE_S
from torchport.targets.torchport_serve import ServerProcess

pytestmark = pytest.mark.server

UNFINISHED = {
    "headers": b"GET /ping HTTP/1.1\r\nHost: ",
    "a first letter": b"G",
    "a body": POST + b"Content-Length: 5\r\n\r\n[4",
    "a body of which nothing comes": POST + b"Content-Length: 5\r\n\r\n",
    "chunks": CHUNKED + b"3\r\n[4.\r\n",
    "trailers": CHUNKED + b"5\r\n[4.0]\r\n0\r\nX: y\r\n",
}


@pytest.mark.parametrize("before", [b"", PING], ids=["first", "second"])
@pytest.mark.parametrize("case", UNFINISHED)
def test_a_request_that_does_not_go_on_is_given_up(
    impatient: ServerProcess, case: str, before: bytes
) -> None:
    with wire(impatient) as raw:
        raw.send(before + UNFINISHED[case])
        if before:
            assert raw.answer().status == 200
        assert raw.answer().status == 408
        assert raw.has_ended()


@pytest.mark.parametrize("case", ["headers", "a body"])
def test_a_drop_now_and_then_does_not_keep_it_alive(impatient: ServerProcess, case: str) -> None:
    begin = UNFINISHED[case].replace(b"Content-Length: 5", b"Content-Length: 5000")
    with wire(impatient) as raw:
        raw.send(begin)
        raw.socket.settimeout(0.1)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            raw.try_to_send(b"1")
            try:
                if raw.socket.recv(12, socket.MSG_PEEK):
                    break
            except TimeoutError:
                continue
        assert raw.answer().status == 408


def test_time_that_a_request_waits_for_another_s_answer_is_not_its_own(impatient: ServerProcess) -> None:
    last = odd(text="third")
    with wire(impatient) as raw:
        raw.send(odd(text="first", sleep=2.5) + odd(text="second") + last[:-5])
        assert raw.answer().body == b"first"
        assert raw.answer().body == b"second"
        assert raw.send(last[-5:]).answer().body == b"third"


def test_an_idle_connection_is_closed_without_a_word(impatient: ServerProcess) -> None:
    with wire(impatient) as fresh, wire(impatient) as used:
        assert used.send(PING).answer().status == 200
        assert fresh.has_ended()
        assert used.has_ended()


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_a_client_that_leaves_its_answer_is_cut_off(impatient: ServerProcess, connection: str) -> None:
    request = odd(text="x" * 1000, times=40_000).replace(
        b"\r\n", f"\r\nConnection: {connection}\r\n".encode(), 1
    )
    with wire(impatient) as raw:
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.send(request)
        assert is_cut_off(impatient, raw)


def test_a_client_that_takes_its_answer_slowly_gets_it_all(impatient: ServerProcess) -> None:
    size = 16_000_000
    with wire(impatient) as raw:
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        raw.send(odd(text="x" * 1000, times=size // 1000))
        received = 0
        began = time.monotonic()
        while received < size:
            got = raw.socket.recv(1 << 18)
            assert got, f"cut off after {received} bytes"
            received += len(got)
            # For longer than body_timeout, at far more than min_body_rate.
            if time.monotonic() - began < 3:
                time.sleep(0.01)


def test_there_are_as_many_connections_as_there_may_be(impatient: ServerProcess) -> None:
    held = [wire(impatient) for _ in range(20)]
    for raw in held:
        assert raw.send(PING).answer().status == 200
    with wire(impatient) as another:
        answer = another.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert another.has_ended()
    assert held[0].send(PING).answer().status == 200
    for raw in held:
        raw.socket.close()
    assert comes_true(lambda: is_answered(impatient)), "places that were left are not had again"
