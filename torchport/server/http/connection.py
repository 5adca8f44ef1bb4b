"""An HTTP/1.1 connection: whole requests in, whole or chunked answers out.

    connection.respond(200, b"content-type: application/json\\r\\n", b"{}")

It runs on uvloop and httptools. A request is handed on once it is complete. Requests that a client sends
ahead wait their turn, and nothing is read while the client does not take its answers. Bounded are the size
of headers and body, the time to send either, and the time to take an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import deque
from typing import cast

from torchport.server.http.body_memory import BodyMemory
from torchport.server.http.host_rule import HostRule
from torchport.server.http.message import BODILESS, Handler, HttpRequest, head_of, refusal_of
from torchport.server.http.reader import RequestReader
from torchport.server.settings.settings import ServerSettings

LINGER_S = 2.0
"""Seconds for which input is still read and dropped after the last answer, so that the client sees that."""

QUIET_S = 0.5
"""Seconds without a request after which an ending server closes a connection."""

PER_TURN = 4
"""Maximum number of requests that one connection begins at once; the others wait for the next turns of the
event loop. So thousands that are sent ahead keep nobody waiting."""

LARGE = 1 << 16
"""Length of an answer's body from which it is written by itself, instead of copied behind its head."""

SLICE = 1 << 12
SLICE_OF_CHUNKS = 1 << 15
"""Bytes of a read that are parsed at once: it may hold thousands of requests, or of chunks."""


class HttpConnection(asyncio.BufferedProtocol):
    """The HTTP/1.1 connection of one client.

    `handle` is called with each request and must answer it exactly once. What is not a large body is read
    into `buffer`, which all connections of an event loop may share.
    """

    def __init__(
        self,
        handle: Handler,
        settings: ServerSettings,
        connections: set[HttpConnection],
        hosts: HostRule,
        memory: BodyMemory,
        buffer: memoryview,
    ) -> None:
        self._buffer, self._reads_body = buffer, False
        self._handle, self._settings, self._connections = handle, settings, connections
        self._reader = RequestReader(settings, self, hosts, memory)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._waiting: deque[HttpRequest] = deque()
        self._active: HttpRequest | None = None
        self._refusal = 0
        """HTTP status of a pending refusal; sent once the earlier requests have been answered. 0: none."""
        self._refused_path = b""
        self.is_ending = self._closes = False
        """`is_ending`: whether the server is ending. The next answer is the last then, unless more requests
        were sent ahead. `_closes`: whether that answer has said so."""
        self._owes_continue = self._chunked = self._bodiless = self._closing = self._paused = False
        self._idle_since: float | None = time.monotonic()
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._begun = 0
        """Number of requests begun since the last turn of the event loop."""
        self._unparsed = memoryview(b"")
        """The rest of a read, whose turn has not come. Nothing more is read meanwhile."""
        self._next_turn: asyncio.Handle | None = None
        self._written = 0
        self._unsent_since: float | None = None

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
        self._unparsed = memoryview(b"")
        active, self._active = self._active, None
        self._can_write.set()
        self._reader.release()
        if active is not None and active.left is not None:
            left, active.left = active.left, None
            left()

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._reader.body.room
        self._reads_body = room is not None and len(room) > 0 and not self._unparsed
        return room if room is not None and self._reads_body else self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._reads_body:
            self._begun = 0
            self._reader.filled(nbytes)
        else:
            self.data_received(bytes(self._buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Take bytes in the order in which they came, requests or parts of them."""
        if self._closing or self._refusal:
            return
        if self._unparsed:
            # Bytes that TLS had decrypted when reading was paused.
            self._unparsed = memoryview(bytes(self._unparsed) + data)
        elif len(data) <= SLICE:
            self._begun = 0
            self._reader.feed(data)
        else:
            self._unparsed = memoryview(data)
            self._parse()

    def _parse(self) -> None:
        """Parse a slice of what was read, and all that is there of a body whose length is known."""
        self._begun = 0
        self._feed(SLICE_OF_CHUNKS if self._reader.is_in_body else SLICE)
        if self._reader.expected:
            self._feed(self._reader.expected)
        self._go_on_later()
        self._control_reading()

    def _feed(self, size: int) -> None:
        piece, self._unparsed = self._unparsed[:size], self._unparsed[size:]
        if piece:
            self._reader.feed(bytes(piece))

    def _go_on_later(self) -> None:
        """Parse what is left, or begin a request that waits, in the next turn of the event loop."""
        if self._next_turn is None and (self._unparsed or self._waiting):
            self._next_turn = asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._next_turn = None
        if self.is_gone or not self._can_write.is_set():
            return
        if self._waiting:
            self._go_on()
        elif self._unparsed:
            self._parse()

    def eof_received(self) -> None:
        """Close the connection, by returning None.

        A client that has stopped sending may have stopped reading, too.
        """

    def pause_writing(self) -> None:
        self._can_write.clear()
        self._control_reading()

    def resume_writing(self) -> None:
        self._can_write.set()
        self._go_on()

    # What the reader calls.

    def taken(self, request: HttpRequest) -> None:
        """Begin a complete request, or let it wait for its turn."""
        self._owes_continue = False
        is_next = self._active is None and not self._waiting and self._can_write.is_set()
        if is_next and self._begun < PER_TURN:
            self._begun += 1
            self._begin(request)
            return
        # Sent ahead: no more is read until its turn has come.
        self._waiting.append(request)
        if is_next:
            self._go_on_later()
        self._control_reading()

    def expected(self) -> None:
        """Send `100 Continue` once the earlier requests have been answered."""
        self._owes_continue = True
        self._go_on()

    def room_for(self, request: HttpRequest, length: int) -> memoryview | None:
        """Memory for a large body, from who will answer the request."""
        return self._handle.room_for(request, length)

    def refuse(self, status: int) -> None:
        """Stop reading, answer the earlier requests, send a refusal and close."""
        if self._refusal or self.is_gone:
            return
        self._refusal, self._refused_path = status, self._reader.path
        self._unparsed = memoryview(b"")
        self._reader.end()
        self._go_on()

    def _begin(self, request: HttpRequest) -> None:
        self._active, self._idle_since = request, None
        self._chunked = self._bodiless = False
        self._handle(request)

    # Answering.

    @property
    def client(self) -> str:
        """The client's address."""
        peer = self._transport.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) else "-"

    @property
    def is_gone(self) -> bool:
        """Whether the connection is closed or closing."""
        return self._closing or self._transport.is_closing()

    def respond(self, status: int, lines: bytes, body: bytes) -> None:
        """Send a whole answer to the current request.

        `lines` are its headers, each with its line's end.
        """
        request = self._active
        if request is None or self.is_gone:
            return
        bodiless = status in BODILESS
        framing = b"" if bodiless else b"content-length: %d\r\n" % len(body)
        head = head_of(status, lines, framing + self._persistence(request))
        if bodiless or request.method == "HEAD":
            self._write(head)
        elif len(body) < LARGE:
            self._write(head + body)
        else:
            self._write(head)
            self._write(body)
        self._finish(request)

    async def start_chunks(self, status: int, lines: bytes) -> None:
        """Begin an answer of unknown length."""
        request = self._active
        if request is None or self.is_gone:
            return
        self._bodiless = status in BODILESS or request.method == "HEAD"
        # HTTP/1.0 knows no chunks: there the end of the connection is the end of the answer.
        self._chunked = request.chunks and not self._bodiless
        framing = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        self._write(head_of(status, lines, framing + self._persistence(request)))

    async def send_chunk(self, piece: bytes) -> None:
        """Send one piece of the answer; wait for a slow client."""
        if piece and not self._bodiless and not self.is_gone:
            self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
            await self._can_write.wait()

    def end_chunks(self) -> None:
        """End the answer of unknown length."""
        request = self._active
        if request is not None and not self.is_gone:
            if self._chunked:
                self._write(b"0\r\n\r\n")
            self._finish(request)

    def abort(self) -> None:
        """Cut the connection, so that the client sees an incomplete answer."""
        self._closing = True
        self._transport.abort()

    def _write(self, data: bytes) -> None:
        self._written += len(data)
        self._transport.write(data)

    def _persistence(self, request: HttpRequest) -> bytes:
        """The header that says that the connection ends with this answer, if it does."""
        self._closes = self.is_ending and not (self._waiting or self._unparsed or self._refusal)
        return b"connection: close\r\n" if self._closes or not request.keep_alive else b""

    def _finish(self, request: HttpRequest) -> None:
        self._active = None
        self._idle_since = time.monotonic()
        if not request.keep_alive:
            self.close()
        elif self._closes:
            self._close_lingering()
        elif self._waiting or self._refusal or self._owes_continue or self._paused:
            self._go_on()

    def _go_on(self) -> None:
        """Begin the next request, refusal or `100 Continue`, if nothing is pending."""
        if self._active is None and self._can_write.is_set() and not self.is_gone:
            if self._waiting:
                # Not deeper in the stack than the request before it.
                self._active = self._waiting.popleft()
                asyncio.get_running_loop().call_soon(self._begin_waiting, self._active)
            elif self._refusal:
                self._send_refusal()
                self._handle.refused(self._refusal)
            elif self._owes_continue:
                self._owes_continue = False
                self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if not self._waiting:
                self._go_on_later()
        self._control_reading()

    def _begin_waiting(self, request: HttpRequest) -> None:
        if not self.is_gone:
            self._begin(request)

    def _control_reading(self) -> None:
        """Pause or resume reading: at most one request is read ahead.

        Nothing is read while the client does not take its answers.
        """
        if self.is_gone:
            return
        wanted = self._can_write.is_set() and not (self._waiting or self._unparsed or self._refusal)
        if wanted and self._paused:
            self._paused = False
            self._reader.restart_clock()
            self._transport.resume_reading()
        elif not wanted and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _send_refusal(self) -> None:
        self._write(refusal_of(self._refusal, self._refused_path))
        self._close_lingering()

    def _close_lingering(self) -> None:
        """Close once the client has, or after `LINGER_S` seconds.

        Closing at once would reset the connection if there is unread input, and the last answer with it.
        """
        self._closing = True
        self._reader.end()
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_S, self._transport.close)

    # Bounds on time, and the end.

    def enforce_time_limits(self, now: float) -> None:
        """Close the connection if its client exceeds a time limit."""
        if self._leaves_answers(now):
            self.abort()
        elif self._closing or self._refusal:
            return
        elif self._reader.is_reading and not self._paused:
            if self._reader.is_late(now):
                self.refuse(408)
        elif self._idle_since is not None and now - self._idle_since > self._settings.keep_alive_timeout:
            self.close()

    def _leaves_answers(self, now: float) -> bool:
        """Whether the client reads its answers slower than bodies must be sent."""
        unsent = self._transport.get_write_buffer_size()
        if not unsent:
            self._unsent_since = None
            return False
        if self._unsent_since is None:
            self._unsent_since, self._written = now, unsent
        taken = self._written - unsent
        allowed = self._settings.body_timeout + taken / self._settings.min_body_rate
        return now - self._unsent_since > allowed

    def close_when_idle(self, now: float) -> None:
        """Close the connection if its client is quiet; else it closes with the last answer.

        A request that is being read is not cut off, and one that may be on its way is waited for.
        """
        self.is_ending = True
        if self._unparsed:
            pass  # What it sent ahead is answered; no more is read meanwhile.
        elif self._waiting:
            self._reader.end()  # A client that always sends ahead would never have its last answer.
        elif not (self._idle_since is None or self._reader.is_reading or self.is_gone) and (
            now - self._idle_since > QUIET_S
        ):
            self.close()

    def close(self) -> None:
        self._closing = True
        self._reader.end()
        self._transport.close()
