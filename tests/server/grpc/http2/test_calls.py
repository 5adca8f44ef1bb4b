"""Calls over HTTP/2: in any pieces, compressed, ended by either side, bounded in size and time."""

import gc
import hashlib
import os
import zlib

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.grpc.http2.conftest import LIMIT
from tests.server.grpc.http2.raw import GREETING, Raw, head, message
from tests.server.http.connections import MIB, Peak
from tests.server.waiting import wait_until
from torchport.server.grpc.http2 import frames as h2
from torchport.server.grpc.http2.stream import STREAM_WINDOW

pytestmark = pytest.mark.server


def answered(raw, number, data=b""):
    """The message that a call is answered with; `data` is what was read of it."""
    while not (found := raw.until(h2.DATA, h2.HEADERS, stream=number)).flags & h2.END_STREAM:
        data += found.payload if found.kind == h2.DATA else b""
    assert data[:5] == b"\0" + (len(data) - 5).to_bytes(4, "big")
    return data[5:]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), size=st.sampled_from([0, 1, 100, 16_384, 16_385, 70_000]), padded=st.booleans())
def test_bytes_may_come_in_any_pieces(here, data, size, padded):
    body = bytes(range(256)) * (size // 256 + 1)
    sent = message(body[:size])
    frames, at = [h2.frame(h2.HEADERS, h2.END_HEADERS, 1, head("/t.T/Echo"))], 0
    while at < len(sent):
        piece = sent[at : at + data.draw(st.sampled_from([1, 4, 5, 6, 1000, 16_000, 60_000]))]
        at += len(piece)
        if padded:
            padding = data.draw(st.integers(0, 255))
            frames.append(h2.frame(h2.DATA, h2.PADDED, 1, bytes([padding]) + piece + bytes(padding)))
        else:
            frames.append(h2.frame(h2.DATA, 0, 1, piece))
        if len(frames) > 60:
            frames.append(h2.frame(h2.DATA, 0, 1, sent[at:]))
            break
    whole = GREETING + b"".join(frames) + h2.frame(h2.DATA, h2.END_STREAM, 1)
    with Raw(here.port, b"") as raw:
        for _ in range(20):
            cut = data.draw(st.sampled_from([1, 3, 9, 10, 24, 1000, 30_000]))
            raw.send(whole[:cut])
            whole = whole[cut:]
        raw.send(whole)
        raw.send(h2.window_update(0, 1 << 20), h2.window_update(1, 1 << 20))
        assert answered(raw, 1) == body[:size]


@pytest.mark.parametrize("first", [b"a", b"b"])
def test_a_large_message_is_read_to_where_its_method_says(here, first):
    body = first + bytes(range(256)) * 4000
    here.rooms.clear()
    with grpc.insecure_channel(f"127.0.0.1:{here.port}") as channel:
        place = channel.unary_unary("/t.T/Place")
        assert place(body, timeout=60) == body
        assert place(b"a small one", timeout=60) == b"a small one"
        assert place(body, timeout=60, compression=grpc.Compression.Gzip) == body
    ((size, beginning, memory),) = here.rooms
    assert (size, beginning) == (len(body), body[:8])
    assert (memory == body) is (first == b"a")


def test_large_messages_both_ways_at_once(here):
    with grpc.insecure_channel(
        f"127.0.0.1:{here.port}", [("grpc.max_receive_message_length", -1)]
    ) as channel:
        echo = channel.unary_unary("/t.T/Echo")
        bodies = [bytes([number]) * (LIMIT - 5 * number) for number in range(8)]
        calls = [echo.future(body, timeout=60) for body in bodies]
        for body, call in zip(bodies, calls, strict=True):
            assert hashlib.sha256(call.result()).digest() == hashlib.sha256(body).digest()
    wait_until(lambda: here.memory.used == 0)


def test_many_messages_of_one_stream_wait_their_turn(here):
    with grpc.insecure_channel(f"127.0.0.1:{here.port}") as channel:
        talk = channel.stream_stream("/t.T/Talk")
        bodies = [b"%d" % number * (1 + number % 40_000) for number in range(0, 60_000, 397)]
        assert list(talk(iter(bodies), timeout=60)) == bodies
    wait_until(lambda: here.memory.used == 0)


def test_messages_sent_ahead_are_bounded_by_the_window(here):
    """The method waits for a client that reads nothing, and so do the messages."""
    with Raw(here.port, h2.PREFACE + h2.settings([(h2.SETTING_WINDOW, 0)])) as raw:
        raw.call(1, "/t.T/Talk")
        raw.data(1, message(b"") * (STREAM_WINDOW // 5))
        raw.data(1, bytes(10_000))
        assert raw.until(h2.RST_STREAM).code == h2.FLOW_CONTROL_ERROR
    wait_until(lambda: here.memory.used == 0 and not here.running)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_messages(here, encoding):
    packer = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
    packed = packer.compress(b"text " * 1000) + packer.flush()
    with Raw(here.port) as raw:
        raw.call(1, "/t.T/Echo", grpc_encoding=encoding)
        raw.data(1, message(packed, flag=1), ends=True)
        assert answered(raw, 1) == b"text " * 1000
        for number, wrong in ((3, packed[:-4]), (5, b"none"), (7, b"")):
            raw.call(number, "/t.T/Echo", grpc_encoding=encoding)
            raw.data(number, message(wrong, flag=1), ends=True)
            assert raw.status(number)["grpc-status"] == "3"
        packer = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
        bomb = packer.compress(bytes(LIMIT + 1)) + packer.flush()
        raw.call(9, "/t.T/Echo", grpc_encoding=encoding)
        raw.data(9, message(bomb, flag=1), ends=True)
        assert raw.status(9)["grpc-status"] == "8"


WRONG = {
    "no message": (b"", {}, "3"),
    "two messages": (message(b"a") * 2, {}, "3"),
    "a message that is cut off": (message(b"abc")[:-1], {}, "3"),
    "a prefix that is cut off": (b"\0\0", {}, "3"),
    "a flag that is none": (message(b"a", flag=2), {}, "3"),
    "compressed without saying how": (message(b"a", flag=1), {}, "3"),
    "compressed in an unknown way": (message(b"a", flag=1), {"grpc_encoding": "snappy"}, "12"),
    "a message that is too large": (b"\0" + (LIMIT + 1).to_bytes(4, "big"), {}, "8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_message_that_is_refused(here, case):
    data, more, status = WRONG[case]
    with Raw(here.port) as raw:
        raw.call(1, "/t.T/Echo", **more)
        raw.data(1, data, ends=True)
        assert raw.status(1)["grpc-status"] == status
        raw.call(3, "/t.T/Echo", b"goes on")
        assert answered(raw, 3) == b"goes on"
    wait_until(lambda: here.memory.used == 0)


def test_a_message_that_is_too_large_is_refused_before_it_comes(here):
    with Raw(here.port) as raw:
        raw.call(1, "/t.T/Echo")
        raw.data(1, b"\0\xff\xff\xff\xff")
        assert raw.status(1)["grpc-status"] == "8"
        assert raw.until(h2.RST_STREAM).code == h2.NO_ERROR


NO_CALLS = {
    "no such method": (head("/t.T/None"), {"grpc-status": "12"}),
    "GET": (head("/t.T/Echo", **{":method": "GET"}), {":status": "405"}),
    "no gRPC": (head("/t.T/Echo", content_type="text/html"), {":status": "415"}),
    "headers beyond the bound": (
        head("/t.T/Echo", **{f"x{n}": "y" * 100 for n in range(120)}),
        {"grpc-status": "8"},
    ),
}


@pytest.mark.parametrize("case", NO_CALLS)
def test_what_is_no_call_of_a_method(here, case):
    block, expected = NO_CALLS[case]
    with Raw(here.port) as raw:
        raw.send(h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 1, block))
        assert raw.status(1).items() >= expected.items()


MALFORMED = {
    "no path": b"\x83\x86",
    "a name in capitals": head("/t.T/Echo", **{"X-Mine": "1"}),
    "a line's end in a value": head("/t.T/Echo", x="a\r\nb: c"),
    "the path twice": b"\x84" + head("/t.T/Echo"),
    "a path after other headers": head("/t.T/Echo") + b"\x84",
    "a status": b"\x88" + head("/t.T/Echo"),
    "connection": head("/t.T/Echo", connection="close"),
    "a deadline that is none": head("/t.T/Echo", grpc_timeout="soon"),
    "base64 that is none": head("/t.T/Echo", **{"x-bin": "*"}),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_headers_reset_their_stream_only(here, case):
    with Raw(here.port) as raw:
        raw.send(h2.frame(h2.HEADERS, h2.END_HEADERS, 1, MALFORMED[case]))
        assert raw.until(h2.RST_STREAM).code == h2.PROTOCOL_ERROR
        raw.call(3, "/t.T/Echo", b"goes on")
        assert answered(raw, 3) == b"goes on"


def test_a_deadline_ends_the_call_and_its_method(here):
    before = here.cancelled
    with Raw(here.port) as raw:
        raw.call(1, "/t.T/Wait", b"", grpc_timeout="50m")
        assert raw.status(1)["grpc-status"] == "4"
    wait_until(lambda: here.cancelled == before + 1)


@pytest.mark.parametrize("leaves", [False, True])
def test_a_client_that_resets_or_leaves_cancels_its_calls(here, leaves):
    begun, cancelled = here.begun, here.cancelled
    with Raw(here.port) as raw:
        raw.call(1, "/t.T/Wait", bytes(1 << 20))
        wait_until(lambda: here.begun == begun + 1)
        assert here.memory.used > 0
        if not leaves:
            raw.send(h2.reset(1, h2.CANCEL))
            wait_until(lambda: here.cancelled == cancelled + 1)
    wait_until(lambda: here.cancelled == cancelled + 1)
    wait_until(lambda: here.memory.used == 0 and not here.running)


def test_calls_leave_nothing_for_the_garbage_collection(here):
    def left():
        gc.collect()
        gc.disable()
        try:
            with Raw(here.port) as raw:
                for number in range(1, 400, 2):
                    raw.call(number, "/t.T/Echo", b"text")
                    assert answered(raw, number) == b"text"
            wait_until(lambda: not here.server.connections)
            return gc.collect()
        finally:
            gc.enable()

    left()
    # What is left does not grow with the calls.
    assert left() < 100


def test_an_answer_waits_for_its_client_and_no_other_does(here):
    with Raw(here.port) as raw:
        raw.call(1, "/t.T/Fill", b"1000000")
        raw.call(3, "/t.T/Echo", b"")
        data = b""
        while len(data) < h2.DEFAULT_WINDOW:
            data += raw.until(h2.DATA).payload
        raw.send(h2.window_update(0, 1 << 20))
        assert answered(raw, 3) == b""
        raw.send(h2.window_update(1, 1 << 20))
        assert len(answered(raw, 1, data)) == 1_000_000


def test_a_stream_pauses_while_its_client_does_not_read(here):
    before = here.begun
    peak = Peak(os.getpid())
    with Raw(here.port, h2.PREFACE + h2.settings([(h2.SETTING_WINDOW, h2.MAX_WINDOW)])) as raw:
        raw.send(h2.window_update(0, h2.MAX_WINDOW - h2.DEFAULT_WINDOW))
        raw.call(1, "/t.T/Pour", b"2000")
        wait_until(lambda: here.begun > before)
        raw.send(h2.frame(h2.PING, 0, 0, bytes(8)))
        raw.until(h2.DATA)
        assert here.begun - before < 1000
        assert peak.growth < 20 * MIB
        data = 0
        while not (found := raw.until(h2.DATA, h2.HEADERS)).flags & h2.END_STREAM:
            data += len(found.payload) if found.kind == h2.DATA else 0
        assert here.begun - before == 2000


def test_who_sends_a_message_too_slowly_is_refused(hasty):
    with Raw(hasty.port) as raw:
        raw.call(1, "/t.T/Echo")
        raw.data(1, message(bytes(100))[:50])
        assert raw.status(1)["grpc-status"] == "4"
    wait_until(lambda: hasty.memory.used == 0)


def test_who_does_not_take_an_answer_is_reset(hasty):
    with Raw(hasty.port, h2.PREFACE + h2.settings([(h2.SETTING_WINDOW, 10)])) as raw:
        raw.call(1, "/t.T/Fill", b"1000")
        assert raw.until(h2.RST_STREAM).code == h2.CANCEL


@pytest.mark.parametrize(
    "sent", [b"", h2.PREFACE[:4], GREETING + bytes(4), GREETING + h2.frame(h2.HEADERS, 0, 1)]
)
def test_who_does_not_send_a_frame_in_time_is_gone(hasty, sent):
    with Raw(hasty.port, sent) as raw:
        assert raw.ends() == h2.ENHANCE_YOUR_CALM
