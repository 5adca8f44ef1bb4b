"""Clients that break the protocol, or flood the server within it: others are served meanwhile."""

import os
import time

import grpc
import pytest

from tests.server.grpc.http2.conftest import local
from tests.server.grpc.http2.raw import GREETING, Raw, head, message
from tests.server.http.connections import MIB, Peak
from tests.server.waiting import wait_until
from torchport.server.grpc.http2 import frames as h2
from torchport.server.grpc.http2.connection import MAX_STREAMS

pytestmark = pytest.mark.server

CALL = h2.frame(h2.HEADERS, h2.END_HEADERS, 1, head("/t.T/Wait"))

FAULTS = {
    "HTTP/1.1": (b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n", h2.PROTOCOL_ERROR),
    "no settings": (h2.PREFACE + CALL, h2.PROTOCOL_ERROR),
    "an entry that the table has not": (
        GREETING + h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\xff\x00"),
        h2.COMPRESSION_ERROR,
    ),
    "a stream of the server's": (GREETING + h2.frame(h2.HEADERS, h2.END_HEADERS, 2), h2.PROTOCOL_ERROR),
    "data before headers": (GREETING + h2.frame(h2.DATA, 0, 1, b"a"), h2.PROTOCOL_ERROR),
    "data of no stream": (GREETING + h2.frame(h2.DATA, 0, 0, b"a"), h2.PROTOCOL_ERROR),
    "a reset of nothing": (GREETING + h2.reset(1, h2.CANCEL), h2.PROTOCOL_ERROR),
    "a push": (GREETING + h2.frame(h2.PUSH_PROMISE, 0, 1, bytes(4)), h2.PROTOCOL_ERROR),
    "a ping of seven bytes": (GREETING + h2.frame(h2.PING, 0, 0, bytes(7)), h2.FRAME_SIZE_ERROR),
    "settings of five bytes": (GREETING + h2.frame(h2.SETTINGS, 0, 0, bytes(5)), h2.FRAME_SIZE_ERROR),
    "a window that is too large": (GREETING + h2.window_update(0, h2.MAX_WINDOW), h2.FLOW_CONTROL_ERROR),
    "a window of nothing": (GREETING + h2.window_update(0, 0), h2.FLOW_CONTROL_ERROR),
    "frames of 100 bytes": (GREETING + h2.settings([(h2.SETTING_MAX_FRAME, 100)]), h2.PROTOCOL_ERROR),
    "a frame of 16 MB": (GREETING + h2.HEADER.pack(0xFFFF, 0xFF, h2.DATA, 0, 1), h2.FRAME_SIZE_ERROR),
    "headers of 1 MB": (GREETING + h2.HEADER.pack(0xFFF, 0, h2.HEADERS, 4, 1), h2.FRAME_SIZE_ERROR),
    "more padding than frame": (
        GREETING + CALL + h2.frame(h2.DATA, h2.PADDED, 1, b"\5ab"),
        h2.PROTOCOL_ERROR,
    ),
    "a padded frame of nothing": (GREETING + CALL + h2.frame(h2.DATA, h2.PADDED, 1), h2.FRAME_SIZE_ERROR),
    "a block that another frame cuts off": (
        GREETING + h2.frame(h2.HEADERS, 0, 1, b"\x83") + h2.frame(h2.PING, 0, 0, bytes(8)),
        h2.PROTOCOL_ERROR,
    ),
    "a continuation of nothing": (GREETING + h2.frame(h2.CONTINUATION, 4, 1, b"\x83"), h2.PROTOCOL_ERROR),
    "a block without end": (
        GREETING + h2.frame(h2.HEADERS, 0, 1) + h2.frame(h2.CONTINUATION, 0, 1, bytes(16_000)) * 5,
        h2.ENHANCE_YOUR_CALM,
    ),
    "empty continuations": (
        GREETING + h2.frame(h2.HEADERS, 0, 1) + h2.frame(h2.CONTINUATION, 0, 1),
        h2.ENHANCE_YOUR_CALM,
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_who_breaks_the_protocol_is_told_so_and_gone(here, case):
    sent, code = FAULTS[case]
    with Raw(here.port, sent) as raw:
        assert raw.ends() == code
    wait_until(lambda: not here.running and here.memory.used == 0)


def test_more_calls_than_announced_are_refused_without_a_trace(here):
    with Raw(here.port) as raw:
        block = head("/t.T/Wait")
        for number in range(1, 2 * MAX_STREAMS + 3, 2):
            raw.send(h2.frame(h2.HEADERS, h2.END_HEADERS, number, block))
        refused = raw.until(h2.RST_STREAM)
        assert (refused.stream, refused.code) == (2 * MAX_STREAMS + 1, h2.REFUSED_STREAM)


def test_more_data_than_was_asked_for(here):
    with Raw(here.port) as raw:
        raw.call(1, "/t.T/Echo")
        # The window of a stream is 1 MiB, and its message as large as that.
        raw.data(1, message(bytes(1 << 20)) + bytes(16_384))
        assert raw.status(1)["grpc-status"] == "3"
        raw.call(3, "/t.T/Talk")
        raw.data(3, (message(bytes(10)) * 10_000 + bytes(16_000)) * 12)
        assert raw.until(h2.RST_STREAM, stream=3).code == h2.FLOW_CONTROL_ERROR


def call(block: bytes, number: int) -> bytes:
    return h2.frame(h2.HEADERS, h2.END_HEADERS, number, block)


def resets() -> bytes:
    """Calls that are given up at once, which cost a client nothing."""
    block = head("/t.T/Wait")
    return b"".join(
        call(block, number)
        + h2.frame(h2.DATA, h2.END_STREAM, number, message(b""))
        + h2.reset(number, h2.CANCEL)
        for number in range(1, 20_000, 2)
    )


FLOODS = {
    "calls given up": resets,
    "pings": lambda: h2.frame(h2.PING, 0, 0, bytes(8)) * 100_000,
    "settings": lambda: h2.settings([(h2.SETTING_WINDOW, 1000)]) * 50_000,
    "empty data": lambda: call(head("/t.T/Echo"), 1) + h2.frame(h2.DATA, 0, 1) * 100_000,
    "windows": lambda: call(head("/t.T/Echo"), 1) + h2.window_update(1, 1) * 50_000,
    "priorities": lambda: h2.frame(h2.PRIORITY, 0, 1, bytes(5)) * 100_000,
    "frames of no meaning": lambda: h2.frame(77, 0, 0, b"a") * 100_000,
    "headers of many names": lambda: b"".join(call(b"\x82" * 30_000, number) for number in range(1, 100, 2)),
}


@pytest.mark.parametrize("case", FLOODS)
def test_a_flood_keeps_nobody_waiting(here, case):
    flood, peak = FLOODS[case](), Peak(os.getpid())
    with grpc.insecure_channel(f"127.0.0.1:{here.port}") as channel, Raw(here.port) as raw:
        echo = channel.unary_unary("/t.T/Echo")
        assert echo(b"before", timeout=30) == b"before"
        raw.socket.settimeout(0.5)
        latest = 0.0
        for at in range(0, len(flood), 1 << 16):
            try:
                raw.send(flood[at : at + (1 << 16)])
            except OSError:
                break  # Cut off, or not read as fast as it comes.
            started = time.monotonic()
            assert echo(b"meanwhile", timeout=30) == b"meanwhile"
            latest = max(latest, time.monotonic() - started)
    # What one read holds takes some milliseconds.
    assert latest < 2.0
    assert peak.growth < 30 * MIB
    wait_until(lambda: not here.running and here.memory.used == 0)


def test_who_reads_no_answers_to_pings_is_cut_off(here):
    pings = h2.frame(h2.PING, 0, 0, bytes(8)) * 4_000_000
    peak = Peak(os.getpid())
    with Raw(here.port) as raw, pytest.raises(ConnectionError):
        raw.socket.sendall(pings)
    assert peak.growth < 30 * MIB


def test_connections_beyond_the_bound_are_refused():
    server = local(max_connections=2)
    server.start()
    try:
        with Raw(server.port) as first, Raw(server.port) as second, Raw(server.port) as third:
            assert third.ends() == h2.ENHANCE_YOUR_CALM
            for raw in (first, second):
                raw.call(1, "/t.T/Wait", b"")
            wait_until(lambda: server.running == 2)
            first.call(3, "/t.T/Echo", b"")
            assert first.status(3)["grpc-status"] == "8"
    finally:
        server.stop()
