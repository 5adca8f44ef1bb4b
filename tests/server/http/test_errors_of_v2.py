"""Errors on paths of the Open Inference Protocol are `{"error": ...}`, whoever refuses the request."""

from __future__ import annotations

import json

import pytest

from tests.server.http.connections import wire
from torchport.targets.torchport_serve import ServerProcess

pytestmark = pytest.mark.server

HOST = b"Host: localhost\r\n"
INFER = b"POST /v2/models/linear/infer HTTP/1.1\r\n" + HOST
CASES = {
    "an unknown path": (b"GET /v2/nothing HTTP/1.1\r\n" + HOST + b"\r\n", 404),
    "an unknown model": (b"GET /v2/models/none HTTP/1.1\r\n" + HOST + b"\r\n", 404),
    "a slash at the end": (b"GET /v2/models/none/ HTTP/1.1\r\n" + HOST + b"\r\n", 404),
    "a body that is none": (INFER + b"Content-Length: 1\r\n\r\n{", 400),
    "another method": (b"DELETE /v2 HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "TRACE": (b"TRACE /v2 HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "an unknown method": (b"EXPLODE /v2/models/linear HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "too large a body": (INFER + b"Content-Length: 1000000000\r\n\r\n", 413),
    "too large headers": (b"GET /v2 HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431),
    "a coding that is not known": (INFER + b"Transfer-Encoding: x\r\n\r\n", 501),
    "an expectation": (INFER + b"Expect: magic\r\n\r\n", 417),
    "no host": (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
    "another host": (b"GET /v2 HTTP/1.1\r\nHost: example.org\r\n\r\n", 403),
    "an absolute URL": (b"GET http://localhost/v2/x HTTP/1.1\r\n" + HOST + b"\r\n", 404),
    "an absolute URL without a host": (b"GET http://localhost/v2/x HTTP/1.1\r\n\r\n", 400),
    "another version of HTTP": (b"GET /v2/models/linear HTTP/3.0\r\n" + HOST + b"\r\n", 505),
    "a broken length": (INFER + b"Content-Length: -1\r\n\r\n", 400),
}


@pytest.mark.parametrize("case", CASES)
def test_an_error_is_what_the_protocol_says(server: ServerProcess, case: str) -> None:
    data, status = CASES[case]
    with wire(server) as raw:
        raw.try_to_send(data)
        answer = raw.answer()
    said = json.loads(answer.body)
    assert (answer.status, list(said)) == (status, ["error"])
    assert said["error"]
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("api", ["management", "metrics"])
def test_other_ports_have_that_form_too(server: ServerProcess, api: str) -> None:
    with wire(server, api) as raw:
        answer = raw.send(b"GET /v2/nothing HTTP/1.1\r\n" + HOST + b"\r\n").answer()
    assert (answer.status, list(json.loads(answer.body))) == (404, ["error"])


def test_a_body_that_comes_late_is_refused_in_that_form(impatient: ServerProcess) -> None:
    with wire(impatient) as raw:
        raw.send(INFER + b"Content-Length: 5\r\n\r\n{")
        answer = raw.answer()
    assert (answer.status, list(json.loads(answer.body))) == (408, ["error"])


@pytest.mark.parametrize("path", [b"/v2x", b"/v22/models", b"/predictions/v2"])
def test_other_paths_keep_torchserves_form(server: ServerProcess, path: bytes) -> None:
    with wire(server) as raw:
        answer = raw.send(b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n").answer()
    said = json.loads(answer.body)
    assert (answer.status, set(said)) == (404, {"code", "type", "message"})


def test_what_follows_a_request_of_the_protocol_is_not_of_it(server: ServerProcess) -> None:
    with wire(server) as raw:
        raw.send(b"GET /v2 HTTP/1.1\r\n" + HOST + b"\r\n\0\0")
        assert raw.answer().status == 200
        answer = raw.answer()
    assert (answer.status, json.loads(answer.body)["code"]) == (400, 400)
