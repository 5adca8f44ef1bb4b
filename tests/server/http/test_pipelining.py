"""Requests sent ahead of the answers, and bodies that wait to be asked for."""

from __future__ import annotations

import json
import selectors
import threading

import pytest

from tests.server.http.connections import MIB, Peak, is_cut_off, refused, wire
from tests.server.http.raw_requests import PING, POST, odd, post
from tests.server.loop_lag import holds_the_loop
from tests.server.wire import PATIENCE_S
from torchport.targets.torchport_serve import ServerProcess

pytestmark = pytest.mark.server

LOCAL, LAST = b"Host: localhost", b"Host: localhost\r\nConnection: close"

# Expect.


def test_a_client_that_asks_first_is_told_to_go_on(server: ServerProcess) -> None:
    with wire(server) as raw:
        head, body = post(b"[4.0]", "Expect: 100-continue")[:-5], b"[4.0]"
        assert raw.send(head).answer().status == 100
        assert raw.send(body + head).answer().status == 200
        assert raw.answer().status == 100
        assert raw.send(body).answer().status == 200


def test_one_that_asks_behind_a_request_is_told_after_that_one_s_answer(server: ServerProcess) -> None:
    with wire(server) as raw:
        raw.send(odd(sleep=0.3) + post(b"[4.0]", "Expect: 100-continue")[:-5])
        assert [raw.answer().status, raw.answer().status] == [200, 100]
        assert raw.send(b"[4.0]").answer().status == 200


def test_a_body_that_is_too_large_is_not_asked_for(server: ServerProcess) -> None:
    request = POST + b"Expect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n"
    assert refused(server, request).status == 413


def test_other_expectations_fail_and_http_1_0_has_none(server: ServerProcess) -> None:
    assert refused(server, POST + b"Expect: 200-maybe\r\n\r\n").status == 417
    with wire(server) as raw:
        raw.send(b"POST /ping HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx")
        assert raw.answer().status == 200


# Requests sent ahead.


def test_requests_sent_ahead_are_answered_in_their_order(server: ServerProcess) -> None:
    numbers = list(range(20))
    with wire(server) as raw:
        raw.send(b"".join(odd(text=str(n), sleep=0.02 * (n % 3 == 0)) + PING for n in numbers))
        for number in numbers:
            assert raw.answer().body.decode() == str(number)
            assert json.loads(raw.answer().body) == {"status": "Healthy"}


def test_thousands_sent_ahead_keep_nobody_waiting(server: ServerProcess) -> None:
    count = 6_000

    def ask() -> None:
        with wire(server) as raw:
            sender = threading.Thread(target=raw.try_to_send, args=(PING * count,))
            sender.start()
            for _ in range(count):
                assert raw.answer().status == 200
            sender.join()

    assert not holds_the_loop(server.urls["metrics"], ask)


def test_more_of_them_than_fit_into_any_buffer_are_answered_all(server: ServerProcess) -> None:
    count, unsent = 5_000, b"".join(post(b"[%d]" % n) for n in range(5_000))
    with wire(server) as raw:
        # One thread does both, as a client must that sends more than the other side takes in.
        raw.socket.setblocking(False)
        answered, tail = 0, b""
        with selectors.DefaultSelector() as both:
            both.register(raw.socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
            while answered < count:
                ready = both.select(PATIENCE_S)
                assert ready, "the server neither reads nor answers"
                events = ready[0][1]
                if events & selectors.EVENT_READ:
                    tail += raw.socket.recv(1 << 18)
                    *whole, tail = tail.split(b"HTTP/1.1 200 OK")
                    answered += len(whole)
                if events & selectors.EVENT_WRITE and unsent:
                    unsent = unsent[raw.socket.send(unsent) :]
                if not unsent:
                    both.modify(raw.socket, selectors.EVENT_READ)


@pytest.mark.parametrize(
    ("behind", "status"),
    [
        (b"garbage\r\n\r\n", 400),
        (POST + b"Content-Length: 1000000000\r\n\r\n", 413),
        (b"GET /ping HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431),
    ],
    ids=["garbage", "too large", "too long"],
)
def test_what_is_refused_takes_no_other_request_s_answer(
    server: ServerProcess, behind: bytes, status: int
) -> None:
    with wire(server) as raw:
        raw.send(odd(text="first", sleep=0.3) + odd(text="second") + behind)
        assert raw.answer().body == b"first"
        assert raw.answer().body == b"second"
        assert raw.answer().status == status
        assert raw.has_ended()


def test_nothing_after_the_last_request_is_read(server: ServerProcess) -> None:
    with wire(server) as raw:
        raw.send(odd(text="last").replace(LOCAL, LAST) + odd(text="more") + b"garbage")
        assert raw.answer().body == b"last"
        assert raw.has_ended()


def test_who_sends_ahead_and_reads_nothing_is_not_kept_in_memory(impatient: ServerProcess) -> None:
    peak = Peak(impatient.pid)
    with wire(impatient) as raw:
        raw.socket.settimeout(0.5)
        with pytest.raises((TimeoutError, ConnectionError)):
            raw.send(b"GET /api-description HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2_000_000)
        assert is_cut_off(impatient, raw)
    assert peak.growth < 64 * MIB
