"""Requests that are larger than they may be are refused, and cost no memory before that."""

from __future__ import annotations

import pytest

from tests.server.http.connections import MIB, Peak, refused, wire
from tests.server.http.raw_requests import CHUNKED, POST
from torchport.targets.torchport_serve import ServerProcess

pytestmark = pytest.mark.server


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(server: ServerProcess) -> None:
    answer = refused(server, POST + b"Content-Length: 1000000000\r\n\r\n")
    assert answer.status == 413


def test_who_sends_it_all_the_same_gets_to_see_why_not(server: ServerProcess) -> None:
    assert refused(server, POST + b"Content-Length: 10000000\r\n\r\n" + bytes(10_000_000)).status == 413


def test_chunks_that_become_too_much_are_refused_before_they_end(server: ServerProcess) -> None:
    peak = Peak(server.pid)
    chunk = b"100000\r\n" + bytes(MIB) + b"\r\n"
    assert refused(server, CHUNKED + chunk * 8).status == 413
    assert peak.growth < 48 * MIB


def test_chunks_of_one_byte_cost_no_more_memory_than_the_body(server: ServerProcess) -> None:
    body = b"[4.0]" + b" " * (4 * MIB)
    data = CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    peak = Peak(server.pid)
    with wire(server) as raw:
        assert raw.send(data).answer().status == 200
    # As an object of its own, each would take some forty bytes: 160 MiB.
    assert peak.growth < 64 * MIB


@pytest.mark.parametrize(
    "headers",
    [
        b"X: " + b"a" * 100_000 + b"\r\n",
        b"a" * 100_000 + b": x\r\n",
        b"".join(b"X-%06d: x\r\n" % number for number in range(10_000)),
        b"X: " + b"a" * 5_000_000 + b"\r\n",
    ],
    ids=["value", "name", "number", "megabytes"],
)
def test_headers_that_are_too_large_are_refused(server: ServerProcess, headers: bytes) -> None:
    assert refused(server, b"GET /ping HTTP/1.1\r\n" + headers + b"\r\n").status == 431


def test_a_path_that_is_too_long_is_refused(server: ServerProcess) -> None:
    assert refused(server, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n").status == 431


@pytest.mark.parametrize(
    "trailers", [b"X: " + b"a" * 5_000_000, b"X: y\r\n" * 1_000_000], ids=["one", "many"]
)
def test_trailers_without_end_are_refused(server: ServerProcess, trailers: bytes) -> None:
    peak = Peak(server.pid)
    assert refused(server, CHUNKED + b"5\r\n[4.0]\r\n0\r\n" + trailers).status == 431
    assert peak.growth < 16 * MIB


@pytest.mark.parametrize("first", [1_000, 40_000, 63_000, 70_000])
def test_headers_are_measured_wherever_they_are_cut(server: ServerProcess, first: int) -> None:
    long = b"GET /ping HTTP/1.1\r\nX: " + b"a" * 80_000 + b"\r\n\r\n"
    with wire(server) as raw:
        raw.send(b"GET /ping HTTP/1.1\r\n\r\n" + long[:first])
        assert raw.answer().status == 200
        raw.send(long[first:])
        assert raw.answer().status == 431
        assert raw.has_ended()
