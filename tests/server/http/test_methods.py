"""Methods and versions of HTTP: HEAD is where GET is, and what is not known is refused as HTTP says."""

from __future__ import annotations

import json

import pytest

from tests.server.http.connections import wire
from tests.server.http.raw_requests import LAST_PING, odd
from torchport.targets.torchport_serve import ServerProcess

pytestmark = pytest.mark.server

KNOWN = "GET, HEAD, POST, PUT, DELETE, OPTIONS"


def request(method: str, path: str) -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("api", "path"),
    [
        ("inference", "/ping"),
        ("inference", "/api-description"),
        ("inference", "/v1/models/linear"),
        ("inference", "/v2/models/linear"),
        ("management", "/models"),
        ("management", "/models/linear"),
        ("metrics", "/metrics"),
    ],
)
def test_head_is_answered_as_get_without_a_body(server: ServerProcess, api: str, path: str) -> None:
    with wire(server, api) as raw:
        head = raw.send(request("HEAD", path)).answer("HEAD")
        full = raw.send(request("GET", path)).answer()
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-type"] == full.headers["content-type"]
    assert int(head.headers["content-length"]) > 0
    assert len(full.body) > 0


def test_a_stream_that_is_asked_for_by_head_has_no_pieces(server: ServerProcess) -> None:
    asked = odd(pieces=2).replace(b"POST", b"HEAD", 1)
    with wire(server) as raw:
        assert raw.send(asked + LAST_PING).answer("HEAD").status == 200
        assert json.loads(raw.answer().body) == {"status": "Healthy"}


@pytest.mark.parametrize("method", ["TRACE", "PATCH", "PROPFIND"])
@pytest.mark.parametrize("path", ["/ping", "/nowhere"])
def test_methods_that_no_resource_has_are_refused_on_every_port(
    server: ServerProcess, method: str, path: str
) -> None:
    for api in server.urls:
        with wire(server, api) as raw:
            answer = raw.send(request(method, path)).answer()
            assert (answer.status, answer.headers["allow"]) == (405, KNOWN)
            assert json.loads(answer.body)["type"] == "MethodNotAllowedException"


@pytest.mark.parametrize("method", ["EXPLODE", "get", "GETT", "GEX", "X-1"])
@pytest.mark.parametrize("piece", [1 << 20, 1], ids=["whole", "in pieces"])
def test_methods_that_nobody_knows_are_refused(server: ServerProcess, method: str, piece: int) -> None:
    data = request(method, "/ping")
    with wire(server) as raw:
        for at in range(0, len(data), piece):
            raw.try_to_send(data[at : at + piece])
        answer = raw.answer()
        assert (answer.status, answer.headers["allow"], answer.headers["connection"]) == (405, KNOWN, "close")
        assert raw.has_ended()


def test_an_unknown_method_behind_another_request(server: ServerProcess) -> None:
    with wire(server) as raw:
        raw.send(request("GET", "/ping") + request("EXPLODE", "/ping"))
        assert [raw.answer().status, raw.answer().status] == [200, 405]


def test_what_a_resource_allows_is_said_with_head(server: ServerProcess) -> None:
    with wire(server) as raw:
        answer = raw.send(request("DELETE", "/v2/models/linear")).answer()
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("version", ["7.3", "3.0", "2.0", "1.2"])
def test_versions_that_are_not_spoken_are_505(server: ServerProcess, version: str) -> None:
    with wire(server) as raw:
        raw.send(f"GET /ping HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
        answer = raw.answer()
        assert (answer.status, json.loads(answer.body)["code"]) == (505, 505)
        assert raw.has_ended()
