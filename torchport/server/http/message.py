"""HTTP messages: parsed requests, heads of answers, complete refusals.

head_of(200, header_lines([(b"content-type", b"application/json")]), b"content-length: 2\\r\\n")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Protocol

from torchport.server.http.body_memory import BodyMemory

Headers = Iterable[tuple[bytes, bytes]]
Body = bytes | memoryview

BODILESS = (204, 304)
"""Statuses whose answers have no body: a client would take a body for the next answer."""

KNOWN_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
"""Methods that a resource may have here; every resource refuses others."""

_STATUS_LINES = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode())
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
    403: ("ForbiddenException", "The server does not have the name in Host; allowed_hosts can add it."),
    405: (
        "MethodNotAllowedException",
        "The method is not allowed: GET, HEAD, POST, PUT, DELETE and OPTIONS are known.",
    ),
    408: ("RequestTimeoutException", "The request did not arrive in time."),
    413: ("RequestEntityTooLargeException", "The request's body is larger than max_request_size."),
    417: ("BadRequestException", "Expect: 100-continue is all that may be expected."),
    431: ("BadRequestException", "The request's headers are larger than max_header_size."),
    500: ("InternalServerException", "The server failed; its log says more."),
    501: ("BadRequestException", "Transfer-Encoding: chunked is all that is understood."),
    505: ("BadRequestException", "HTTP/1.1 and HTTP/1.0 are the versions that are spoken here."),
    503: (
        "ServiceUnavailableException",
        "Too many connections or bytes of bodies at once: try again.",
    ),
}


class Responder(Protocol):
    """Takes the answer to the current request, whole or in pieces."""

    @property
    def client(self) -> str:
        """The client's address."""

    @property
    def is_gone(self) -> bool:
        """Whether the client's connection is closed or closing."""

    def respond(self, status: int, lines: bytes, body: bytes) -> None:
        """Send a whole answer."""

    async def start_chunks(self, status: int, lines: bytes) -> None:
        """Begin an answer of unknown length."""

    async def send_chunk(self, piece: bytes) -> None:
        """Send one piece of the answer."""

    def end_chunks(self) -> None:
        """End the answer of unknown length."""

    def abort(self) -> None:
        """Cut the connection, so that the client sees an incomplete answer."""


class Handler(Protocol):
    """Answers the requests to an address, each exactly once."""

    def __call__(self, request: HttpRequest, /) -> None: ...

    def refused(self, status: int) -> None:
        """Note the status with which the connection itself has refused its input."""

    def room_for(self, request: HttpRequest, length: int) -> memoryview | None:
        """Memory for a large body of this length, whose request's headers have come; None: any will do."""


class HttpRequest:
    """One parsed HTTP request.

    `headers` keep the client's spelling of the names. `by_name` has lower-case names, and the first value
    of a repeated header. `chunks`: whether the client understands chunked answers; HTTP/1.0 does not. A
    request without a responder is answered by value.
    """

    __slots__ = (
        "_responder",
        "body",
        "by_name",
        "chunks",
        "headers",
        "held",
        "keep_alive",
        "left",
        "memory",
        "method",
        "path",
        "query",
    )

    def __init__(self, responder: Responder | None = None, memory: BodyMemory | None = None) -> None:
        self._responder = responder
        self.memory = memory
        """The memory of all bodies, in which what the body decompresses to is counted."""
        self.headers: list[tuple[bytes, bytes]] = []
        self.by_name: dict[bytes, bytes] = {}
        self.method = ""
        self.path = b""
        self.query = b""
        self.body: Body = b""
        self.held: object = None
        """What counts the body's bytes in the memory of all bodies, as long as the request lives."""
        self.left: Callable[[], None] | None = None
        """Called once if the client's connection ends before the answer does."""
        self.keep_alive = self.chunks = True

    @property
    def content_type(self) -> str:
        return self.by_name.get(b"content-type", b"").decode("latin-1")

    @property
    def responder(self) -> Responder:
        """The connection to which the answer is sent.

        Raises:
            RuntimeError: the request is answered by value.
        """
        if self._responder is None:
            raise RuntimeError(f"{self.method} {self.path!r} is answered by value")
        return self._responder

    def add_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))
        self.by_name.setdefault(name.lower(), value)


def header_lines(headers: Headers) -> bytes:
    """The lines of some headers.

    A line break in a value becomes a space: it would begin another header.
    """
    return b"".join(_line(name, value) for name, value in headers)


def _line(name: bytes, value: bytes) -> bytes:
    line = b"%b: %b" % (name, value)
    if b"\n" in line or b"\r" in line or b"\0" in line:
        line = b" ".join(line.replace(b"\0", b" ").split())
    return line + b"\r\n"


def head_of(status: int, lines: bytes, framing: bytes) -> bytes:
    """The head of an answer: status line, `lines` of headers, framing.

    `lines` are made by `header_lines`.
    """
    first = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    return b"%b%b%b%b" % (first, lines, framing, _NO_CACHE)


def is_open_inference(path: bytes) -> bool:
    """Whether errors on this path have the Open Inference Protocol's form: it is `/v2`, or below."""
    return path.startswith(b"/v2") and path[3:4] in (b"", b"/", b"?")


def refusal_of(status: int, path: bytes = b"") -> bytes:
    """The complete answer that refuses a request, in the form of errors on its path."""
    kind, message = _REFUSALS[status]
    body = f'{{\n  "code": {status},\n  "type": "{kind}",\n  "message": "{message}"\n}}\n'.encode()
    if is_open_inference(path):
        body = f'{{\n  "error": "{message}"\n}}\n'.encode()
    lines = b"content-type: application/json\r\n"
    if status == 503:
        lines += b"retry-after: 1\r\n"
    if status == 405:
        lines += b"allow: %b\r\n" % ", ".join(KNOWN_METHODS).encode()
    framing = b"content-length: %d\r\nconnection: close\r\n" % len(body)
    return head_of(status, lines, framing) + body
