"""A handler must not be able to end an answer early or to begin another."""

from __future__ import annotations

import json

import pytest

from tests.server.http.connections import wire
from tests.server.http.raw_requests import LAST_PING, odd
from torchport.targets.torchport_serve import ServerProcess

pytestmark = pytest.mark.server


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_by_its_status_is_sent_none(server: ServerProcess, status: int) -> None:
    with wire(server) as raw:
        raw.send(odd(status=status, text="a body") + LAST_PING)
        assert raw.answer().status == status
        assert json.loads(raw.answer().body) == {"status": "Healthy"}


@pytest.mark.parametrize(
    "asked",
    [
        {"headers": {"X-A": "b\r\nInjected: yes"}},
        {"headers": {"X-A": "b\r\n\r\nHTTP/1.1 200 OK\r\nInjected: yes\r\n\r\n"}},
        {"headers": {"X-A\r\nInjected": "yes"}},
        {"headers": {"X-A": "b\nInjected: yes"}},
        {"headers": {"X-A": "b\0c"}},
        {"headers": {"Content-Length": "1", "Transfer-Encoding": "chunked", "Connection": "close"}},
        {"headers": {"content-length ": "1"}},
        {"headers": {"X-A": "é\u20ac"}},
        {"type": "text/plain\r\nInjected: yes"},
        {"headers": {"Content-Type": "text/plain\r\nInjected: yes\r\n\r\n"}},
    ],
    ids=str,
)
def test_headers_of_a_handler_cannot_add_others(server: ServerProcess, asked: dict[str, object]) -> None:
    with wire(server) as raw:
        raw.send(odd(**asked, text="whole") + LAST_PING)
        answer = raw.answer()
        assert (answer.status, answer.body) == (200, b"whole")
        assert "injected" not in {name.lower() for name in answer.headers}
        assert json.loads(raw.answer().body) == {"status": "Healthy"}


def test_a_stream_is_chunks_to_new_clients_and_ends_with_the_connection_for_old_ones(
    server: ServerProcess,
) -> None:
    request = odd(pieces=3, text="end")
    with wire(server) as raw:
        raw.send(request + LAST_PING)
        assert raw.answer().body == b"piecepiecepieceend"
        assert raw.answer().status == 200
    with wire(server) as raw:
        answer = raw.send(request.replace(b"HTTP/1.1", b"HTTP/1.0")).answer()
        assert "transfer-encoding" not in answer.headers
        assert answer.body == b"piecepiecepieceend"


def test_a_refusal_after_a_stream_is_an_answer(server: ServerProcess) -> None:
    with wire(server) as raw:
        assert raw.send(odd(pieces=3)).answer().status == 200
        assert raw.send(b"garbage\r\n\r\n").answer().status == 400
