"""Where a request ends must not be open to doubt, and what is none is refused."""

from __future__ import annotations

import json

import pytest

from tests.server.http.connections import refused, wire
from tests.server.http.raw_requests import CHUNKED, LAST_PING, PING, POST, post
from tests.server.metrics import metric
from torchport.targets.torchport_serve import ServerProcess

pytestmark = pytest.mark.server


def test_refusals_are_counted_among_the_answers_with_their_status(server: ServerProcess) -> None:
    before = metric(server, "Requests4XX_total")
    assert refused(server, POST + b"Content-Length: 1000000000\r\n\r\n").status == 413
    assert refused(server, b"GET /ping HTTP/1.1\r\nContent-Length: -1\r\n\r\n").status == 400
    assert metric(server, "Requests4XX_total") == before + 2


AMBIGUOUS = {
    "length and chunks": (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunks and length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n[4.0]", 400),
    "a list of lengths": (POST + b"Content-Length: 5, 5\r\n\r\n[4.0]", 400),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "a signed length": (POST + b"Content-Length: +5\r\n\r\n[4.0]", 400),
    "a length in hex": (POST + b"Content-Length: 0x5\r\n\r\n[4.0]", 400),
    "a length with a space": (POST + b"Content-Length: 5 5\r\n\r\n[4.0]", 400),
    "a huge length": (POST + b"Content-Length: 18446744073709551621\r\n\r\n[4.0]", 400),
    "no length": (POST + b"Content-Length:\r\n\r\n", 400),
    # RFC 9112, 6.1: a coding that is not understood is answered 501.
    "an unknown coding": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    "chunks that are not last": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "chunks of something else": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "two codings": (
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        400,
    ),
    "a vertical tab": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "a space before the colon": (POST + b"Content-Length : 5\r\n\r\n[4.0]", 400),
    "a folded header": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    "a bare line feed": (POST + b"Content-Length: 5\n\r\n[4.0]", 400),
    "a bare carriage return": (POST + b"X: a\rContent-Length: 5\r\n\r\n[4.0]", 400),
    "NUL in a header": (POST + b"X: a\0b\r\n\r\n", 400),
    "a control character": (POST + b"X: a\x01b\r\n\r\n", 400),
    "a nameless header": (POST + b": x\r\n\r\n", 400),
    "chunk size: negative": (CHUNKED + b"-1\r\nx\r\n0\r\n\r\n", 400),
    "chunk size: prefix": (CHUNKED + b"0x5\r\n[4.0]\r\n0\r\n\r\n", 400),
    "chunk size: overflow": (CHUNKED + b"1ffffffffffffffff\r\nx\r\n0\r\n\r\n", 400),
    "chunk size: none": (CHUNKED + b"\r\nx\r\n0\r\n\r\n", 400),
    "chunk size: bare line feed": (CHUNKED + b"5\n[4.0]\r\n0\r\n\r\n", 400),
    "chunk size: too small": (CHUNKED + b"3\r\n[4.0]\r\n0\r\n\r\n", 400),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_a_request_whose_end_is_in_doubt_is_refused_and_nothing_after_it_is_read(
    server: ServerProcess, case: str
) -> None:
    data, status = AMBIGUOUS[case]
    assert refused(server, data + PING).status == status


NO_HTTP = {
    "unknown method": (b"EXPLODE / HTTP/1.1\r\n\r\n", 405),
    "lower case method": (b"get /ping HTTP/1.1\r\n\r\n", 405),
    "no path": (b"GET  HTTP/1.1\r\n\r\n", 400),
    "an authority": (b"GET localhost:80 HTTP/1.1\r\n\r\n", 400),
    "an asterisk": (b"GET * HTTP/1.1\r\n\r\n", 400),
    "CONNECT": (b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n", 405),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 400),
    "an unknown version": (b"GET /ping HTTP/7.3\r\n\r\n", 505),
    "a raw path of UTF-8": ("GET /predictions/é HTTP/1.1\r\n\r\n".encode(), 400),
    "a control character in the path": (b"GET /pi\x07ng HTTP/1.1\r\n\r\n", 400),
    "NUL in the path": (b"GET /pi\0ng HTTP/1.1\r\n\r\n", 400),
    "a TLS hello": (bytes.fromhex("1603010200010001fc0303") + bytes(range(200)), 400),
    "gRPC": (b"\0\0\0\0\x05hello", 400),
    "a question of DNS": (b"\0\x1c\xaa\xaa\1\0\0\1\0\0\0\0\0\0", 400),
}


@pytest.mark.parametrize("case", NO_HTTP)
def test_what_is_no_request_is_refused(server: ServerProcess, case: str) -> None:
    data, status = NO_HTTP[case]
    assert refused(server, data).status == status


GET = b"GET /ping HTTP/1.1\r\nHost: localhost\r\n"
ACCEPTED = {
    "an absolute URL": b"GET http://example.org/ping HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "empty lines before it": b"\r\n\r\n" + PING,
    "blanks after values": POST + b"Content-Type: application/json \t\r\nContent-Length: 5 \t\r\n\r\n[4.0]",
    "leading zeros": POST
    + b"Content-Type: application/json\r\nContent-Length: 0000000000000005\r\n\r\n[4.0]",
    "chunks": CHUNKED + b"2\r\n[4\r\n3;name=value\r\n.0]\r\n0\r\nTrailer: x\r\n\r\n",
    "one byte a chunk": CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in b"[4.0]") + b"0\r\n\r\n",
    "websocket": GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "h2c": GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
    "h2c with a body": post(b"[4.0]", "Connection: Upgrade", "Upgrade: h2c"),
    "h2c with chunks": CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
    + b"5\r\n[4.0]\r\n0\r\n\r\n",
    "h2c with an empty body": GET.replace(b"GET", b"POST")
    + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n",
    "a body of no use": GET + b"Content-Length: 5\r\n\r\nhello",
    "60 kB of headers": GET + b"X: " + b"a" * 60_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("case", ACCEPTED)
@pytest.mark.parametrize("piece", [1 << 20, 7], ids=["whole", "in pieces"])
def test_what_http_allows_is_answered_and_the_next_request_too(
    server: ServerProcess, case: str, piece: int
) -> None:
    with wire(server) as raw:
        data = ACCEPTED[case] + LAST_PING
        for at in range(0, len(data), piece):
            raw.send(data[at : at + piece])
        assert raw.answer().status == 200
        assert json.loads(raw.answer().body) == {"status": "Healthy"}
        assert raw.has_ended()


def test_the_body_of_a_request_to_upgrade_is_its_body_and_no_request(server: ServerProcess) -> None:
    hidden = b"GET /predictions/nobody HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with wire(server) as raw:
        raw.send(post(hidden, "Connection: Upgrade", "Upgrade: h2c", path="/ping") + LAST_PING)
        assert [raw.answer().status, raw.answer().status] == [200, 200]
        assert raw.has_ended()


def test_trailers_are_no_headers(server: ServerProcess) -> None:
    body = b"5\r\n[4.0]\r\n0\r\nX-Request-Id: smuggled\r\nX-Request-Timeout-Ms: no number\r\n\r\n"
    with wire(server) as raw:
        answer = raw.send(CHUNKED + body).answer()
    assert answer.status == 200
    assert answer.headers["x-request-id"] != "smuggled"


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/0.9"])
@pytest.mark.parametrize("connection", ["", "Connection: keep-alive\r\n"])
def test_older_protocols_get_one_answer_and_the_end(
    server: ServerProcess, version: str, connection: str
) -> None:
    with wire(server) as raw:
        answer = raw.send(f"GET /ping {version}\r\n{connection}\r\n".encode()).answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert raw.has_ended()


def test_a_head_request_has_the_length_and_no_body(server: ServerProcess) -> None:
    with wire(server) as raw:
        raw.send(PING.replace(b"GET", b"HEAD") + LAST_PING)
        assert int(raw.answer("HEAD").headers["content-length"]) > 0
        assert json.loads(raw.answer().body) == {"status": "Healthy"}


PATHS = [
    "/../../../etc/passwd",
    "/..%2f..%2fetc%2fpasswd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/predictions/../ping",
    "/predictions/linear%2f1.0",
    "/predictions/%252e%252e",
    "/predictions/linear%00",
    "/predictions/%ff%fe",
    "/predictions/%ED%A0%80",
    "/predictions/%0d%0aSet-Cookie:%20a=b",
    "//ping",
    "///",
    "/predictions/" + "a" * 50_000,
    "/predictions/" + "/" * 50_000,
    "/%",
    "/%zz",
    "/models/linear",
]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PATCH", "PROPFIND"])
def test_strange_paths_are_not_found_on_any_port(server: ServerProcess, method: str) -> None:
    for api in server.urls:
        with wire(server, api) as raw:
            for path in PATHS:
                if (api, path) == ("management", "/models/linear"):
                    continue
                answer = raw.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()).answer()
                assert answer.status in (404, 405), (api, path)
                assert json.loads(answer.body)["code"] == answer.status
                assert "set-cookie" not in answer.headers
