"""What goes over an HTTP connection: requests as they came, heads of answers, refusals as whole answers.

head_of(200, [(b"content-type", b"application/json")], b"content-length: 2\\r\\n")
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchport.server.http_connection import HttpConnection

Headers = Iterable[tuple[bytes, bytes]]

BODILESS = (204, 304)
"""Statuses whose answers have no body: a client would take one for the next answer's beginning."""

_STATUS_LINES = {
    status: b"HTTP/1.1 %d %b" % (status, HTTPStatus(status).phrase.encode())
    for status in map(int, HTTPStatus)
}
_NO_CACHE = (
    b"pragma: no-cache\r\n"
    b"cache-control: no-cache; no-store, must-revalidate, private\r\n"
    b"expires: Thu, 01 Jan 1970 00:00:00 UTC\r\n"
    b"\r\n"
)
_REFUSALS = {
    400: ("BadRequestException", "Invalid HTTP request received."),
    405: ("MethodNotAllowedException", "This server is no proxy: CONNECT is not allowed."),
    408: ("RequestTimeoutException", "The request did not arrive in time."),
    413: ("RequestEntityTooLargeException", "The request's body is larger than max_request_size."),
    417: ("BadRequestException", "Expect: 100-continue is all that may be expected."),
    431: ("BadRequestException", "The request's headers are larger than max_header_size."),
    500: ("InternalServerException", "The server failed; its log says more."),
    501: ("BadRequestException", "Transfer-Encoding: chunked is all that is understood."),
    503: ("ServiceUnavailableException", "Too many connections: try again later."),
}


class HttpRequest:
    """One request as it came. `headers` have the names that the client wrote.

    `chunks` says whether the client knows answers in pieces; one of HTTP/1.0 does not.
    """

    __slots__ = ("_lower", "body", "chunks", "connection", "headers", "keep_alive", "method", "path", "query")

    def __init__(self, connection: HttpConnection) -> None:
        self.connection = connection
        self.headers: list[tuple[bytes, bytes]] = []
        self.method = ""
        self.path = b""
        self.query = b""
        self.body = b""
        self.keep_alive = self.chunks = True
        self._lower: dict[bytes, bytes] | None = None

    def header(self, name: bytes) -> bytes | None:
        """A header by its name in lower case; of one that comes twice, the first."""
        if self._lower is None:
            self._lower = {key.lower(): value for key, value in reversed(self.headers)}
        return self._lower.get(name)


def head_of(status: int, headers: Headers, framing: bytes) -> bytes:
    """Status line and headers. A line break in a value becomes a space: it would begin another header."""
    lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status]
    lines += [b"%b: %b" % pair for pair in headers]
    head = b"\r\n".join(lines)
    if head.count(b"\n") >= len(lines) or head.count(b"\r") >= len(lines) or b"\0" in head:
        head = b"\r\n".join(b" ".join(line.replace(b"\0", b" ").split()) for line in lines)
    return b"%b\r\n%b%b" % (head, framing, _NO_CACHE)


def refusal_of(status: int) -> bytes:
    """The whole answer to a request that is not read to its end."""
    kind, message = _REFUSALS[status]
    body = f'{{\n  "code": {status},\n  "type": "{kind}",\n  "message": "{message}"\n}}\n'.encode()
    headers = [(b"content-type", b"application/json")]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    if status == 405:
        headers.append((b"allow", b"GET, HEAD, POST, PUT, DELETE, OPTIONS"))
    framing = b"content-length: %d\r\nconnection: close\r\n" % len(body)
    return head_of(status, headers, framing) + body
