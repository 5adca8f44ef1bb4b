"""HTTP/1.1 on uvloop and httptools: whole requests in, whole or chunked answers out.

    connection.respond(200, [(b"content-type", b"application/json")], b"{}")

A request is handed on when all of it is there; those that a client sends ahead wait their turn. What a
client may cost is bounded: headers, body, time for either, time to take an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, cast

import httptools

from torchport.server.settings import ServerSettings

Headers = Iterable[tuple[bytes, bytes]]

_STATUS_LINES = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode())
    for status in map(int, HTTPStatus)
}
_NO_CACHE = (
    b"pragma: no-cache\r\n"
    b"cache-control: no-cache; no-store, must-revalidate, private\r\n"
    b"expires: Thu, 01 Jan 1970 00:00:00 UTC\r\n"
)
_REFUSALS = {
    400: ("BadRequestException", "Invalid HTTP request received."),
    408: ("RequestTimeoutException", "The request did not arrive in time."),
    413: ("RequestEntityTooLargeException", "The request's body is larger than max_request_size."),
    417: ("BadRequestException", "Expect: 100-continue is all that may be expected."),
    431: ("BadRequestException", "The request's headers are larger than max_header_size."),
    503: ("ServiceUnavailableException", "Too many connections: try again later."),
}
_LINGER_S = 2.0
"""How long what a refused client still sends is read and dropped, so that it gets to see the answer."""


class HttpRequest:
    """One request as it came. `headers` have the names that the client wrote."""

    __slots__ = ("_lower", "body", "connection", "headers", "keep_alive", "method", "path", "query")

    def __init__(self, connection: HttpConnection) -> None:
        self.connection = connection
        self.headers: list[tuple[bytes, bytes]] = []
        self.method = ""
        self.path = b""
        self.query = b""
        self.body = b""
        self.keep_alive = True
        self._lower: dict[bytes, bytes] | None = None

    def header(self, name: bytes) -> bytes | None:
        """A header by its name in lower case; of one that comes twice, the first."""
        if self._lower is None:
            self._lower = {key.lower(): value for key, value in reversed(self.headers)}
        return self._lower.get(name)


class HttpConnection(asyncio.Protocol):
    """One connection. `handle` is given each request, and sees to it that `respond` is called once."""

    def __init__(
        self,
        handle: Callable[[HttpRequest], None],
        settings: ServerSettings,
        connections: set[HttpConnection],
    ) -> None:
        self._handle, self._settings, self._connections = handle, settings, connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._url = b""
        self._incoming: HttpRequest | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._in_body = False
        self._waiting: deque[HttpRequest] = deque()
        self._active: HttpRequest | None = None
        self._started = False
        self._closing = False
        self._chunked = False
        self._paused = False
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._idle_since: float | None = time.monotonic()
        self._reading_since: float | None = None
        self._unsent: tuple[int, float] = (0, 0.0)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self._connections) > self._settings.max_connections:
            self.refuse(503)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._closing = True
        self._waiting.clear()
        self._can_write.set()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._reading_since is None:
            self._reading_since = time.monotonic()
        if not self._in_body:
            self._size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.refuse(400)
        except httptools.HttpParserError:
            self.refuse(400)
        # Looked at afterwards: only the parser knows where headers end.
        if not self._in_body and self._size > self._settings.max_header_size:
            self.refuse(431)

    def eof_received(self) -> None:
        """The client has hung up; nothing tells whether it would still read."""

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._incoming = HttpRequest(self)
        self._url = b""
        self._pieces = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._incoming is not None:
            self._incoming.headers.append((name, value))

    def on_headers_complete(self) -> None:
        request = self._incoming
        if request is None or self._closing:
            return
        self._in_body, self._size = True, 0
        parser = self._parser
        request.method = parser.get_method().decode("ascii")
        request.keep_alive = parser.should_keep_alive() and parser.get_http_version() != "1.0"
        try:
            url = httptools.parse_url(self._url)
        except httptools.HttpParserInvalidURLError:
            self.refuse(400)
            return
        request.path, request.query = url.path or b"/", url.query or b""
        for name, value in request.headers:
            size = len(name)
            if size == 14 and name.lower() == b"content-length":
                if not value.isdigit():
                    self.refuse(400)
                elif int(value) > self._settings.max_request_size:
                    self.refuse(413)
            elif size == 6 and name.lower() == b"expect":
                if value.lower() != b"100-continue":
                    self.refuse(417)
                elif not self._closing and self._active is None:
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._settings.max_request_size:
            self.refuse(413)
        elif not self._closing:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        request, self._incoming = self._incoming, None
        if request is None or self._closing:
            return
        pieces = self._pieces
        request.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces = []
        self._in_body, self._size, self._reading_since = False, 0, None
        if self._active is None:
            self._begin(request)
            return
        # Sent ahead: read no more until its turn has come.
        self._waiting.append(request)
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _begin(self, request: HttpRequest) -> None:
        self._active, self._idle_since = request, None
        self._started = self._chunked = False
        self._handle(request)

    # Answering.

    @property
    def client(self) -> str:
        """The client's address."""
        peer = self._transport.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) else "-"

    @property
    def is_gone(self) -> bool:
        """Whether the client has hung up, or was cut off."""
        return self._closing or self._transport.is_closing()

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer to the request at hand."""
        request = self._active
        if request is None or self.is_gone:
            return
        head = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        for name, value in headers:
            head.append(name + b": " + value + b"\r\n")
        if not request.keep_alive:
            head.append(b"connection: close\r\n")
        head.append(b"content-length: %d\r\n" % len(body))
        head.append(_NO_CACHE)
        head.append(b"\r\n")
        if request.method != "HEAD":
            head.append(body)
        self._transport.write(b"".join(head))
        self._finish(request)

    async def start_chunks(self, status: int, headers: Headers) -> None:
        """Begin an answer whose length is not known."""
        request = self._active
        if request is None or self.is_gone:
            return
        head = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        head += [name + b": " + value + b"\r\n" for name, value in headers]
        # HTTP/1.0 knows no chunks: there the end of the connection is the end of the answer.
        self._chunked = request.keep_alive or self._parser.get_http_version() != "1.0"
        head.append(b"transfer-encoding: chunked\r\n" if self._chunked else b"")
        if not request.keep_alive:
            head.append(b"connection: close\r\n")
        self._started = True
        self._transport.write(b"".join([*head, _NO_CACHE, b"\r\n"]))

    async def send_chunk(self, piece: bytes) -> None:
        """Send a piece; waits where the client takes them slower than they come."""
        if piece and not self.is_gone:
            self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
            await self._can_write.wait()

    def end_chunks(self) -> None:
        """End the answer."""
        request = self._active
        if request is not None and not self.is_gone:
            if self._chunked:
                self._transport.write(b"0\r\n\r\n")
            self._finish(request)

    def abort(self) -> None:
        """Cut the connection off: what was sent so far is not all that there should have been."""
        self._closing = True
        self._transport.abort()

    def _finish(self, request: HttpRequest) -> None:
        self._active = None
        self._idle_since = time.monotonic()
        if not request.keep_alive:
            self._closing = True
            self._transport.close()
            return
        if self._waiting:
            self._begin_soon()
        elif self._paused:
            self._paused = False
            self._transport.resume_reading()

    def _begin_soon(self) -> None:
        """Take the next request that was sent ahead, not deeper in the stack than this one was."""
        request = self._waiting.popleft()
        self._active = request
        asyncio.get_running_loop().call_soon(self._begin_waiting, request)

    def _begin_waiting(self, request: HttpRequest) -> None:
        if not self.is_gone:
            self._begin(request)

    def refuse(self, status: int) -> None:
        """Answer what is not read to its end, and close."""
        if self.is_gone:
            return
        self._closing = True
        self._waiting.clear()
        if self._started:
            self._transport.abort()
            return
        kind, message = _REFUSALS[status]
        body = f'{{\n  "code": {status},\n  "type": "{kind}",\n  "message": "{message}"\n}}\n'.encode()
        retry = b"retry-after: 1\r\n" if status == 503 else b""
        self._transport.write(
            b"%bcontent-type: application/json\r\n%bcontent-length: %d\r\nconnection: close\r\n%b\r\n%b"
            % (_STATUS_LINES[status], retry, len(body), _NO_CACHE, body)
        )
        # Closing at once would reset the connection, and with it the answer that is on its way.
        if self._transport.can_write_eof():
            self._transport.write_eof()
        asyncio.get_running_loop().call_later(_LINGER_S, self._transport.close)

    # Bounds on time, and the end.

    def enforce_time_limits(self, now: float) -> None:
        """Close the connection where its client takes longer than it may."""
        settings = self._settings
        if self._closing:
            return
        unsent = self._transport.get_write_buffer_size()
        if unsent and unsent == self._unsent[0]:
            if now - self._unsent[1] > settings.body_timeout:
                self.abort()  # It does not take its answer.
                return
        else:
            self._unsent = (unsent, now)
        if self._reading_since is not None and not self._paused:
            taken = now - self._reading_since
            allowed = settings.header_timeout
            if self._in_body:
                allowed = settings.body_timeout + self._size / settings.min_body_rate
            if taken > allowed:
                self.refuse(408)
        elif self._idle_since is not None and now - self._idle_since > settings.keep_alive_timeout:
            self.close()

    def close_when_idle(self) -> None:
        """Close now, or with the answer that is under way."""
        if self._active is None and self._reading_since is None:
            self.close()
        elif self._active is not None:
            self._active.keep_alive = False

    def close(self) -> None:
        self._closing = True
        self._transport.close()


class HttpServer:
    """One listening address. `handle` is given every request."""

    def __init__(
        self,
        handle: Callable[[HttpRequest], None],
        host: str,
        port: int,
        settings: ServerSettings,
        tls: Any = None,
    ) -> None:
        self._handle, self._host, self._port, self._settings, self._tls = handle, host, port, settings, tls
        self._connections: set[HttpConnection] = set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it really listens."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{port}"

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be had.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: HttpConnection(self._handle, self._settings, self._connections),
            self._host,
            self._port,
            ssl=self._tls,
            backlog=2048,
        )
        self._sweeper = loop.create_task(self._sweep())

    async def stop(self, grace: float) -> None:
        """Take no new connection, let those that wait have their answers, close."""
        if self._server is None:
            return
        self._server.close()
        deadline = time.monotonic() + grace
        for connection in list(self._connections):
            connection.close_when_idle()
        while self._connections and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.close()
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            for connection in list(self._connections):
                connection.enforce_time_limits(now)
