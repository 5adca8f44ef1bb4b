"""Parses the bytes of a connection into requests, by httptools.

    reader = RequestReader(settings, owner, hosts)
    reader.feed(data)                    # owner.taken(request), or owner.refuse(status)

Invalid input is refused, and nothing more is read after that. Ambiguous framing is refused too, because
requests can be smuggled by it. A request to change the protocol is answered as if it had not asked.
"""

from __future__ import annotations

import contextlib
import logging
import time
from functools import lru_cache
from typing import Any, Protocol, cast

import httptools

from torchport.server.http.body import IncomingBody
from torchport.server.http.body_memory import BodyMemory
from torchport.server.http.first_line import METHODS, UNKNOWN_VERSION, target_of_unknown_method
from torchport.server.http.host_rule import HostRule
from torchport.server.http.message import HttpRequest, Responder
from torchport.server.settings.settings import ServerSettings

logger = logging.getLogger(__name__)

_SHORT_TARGET = 256

DIRECT = 1 << 16
"""Announced length from which a body is read straight into its memory, past the parser."""


def _parse_target(target: bytes) -> tuple[bytes, bytes]:
    url = httptools.parse_url(target)
    return url.path or b"/", url.query or b""


# Most requests are to a few targets; long ones are not worth the memory.
_parse_short_target = lru_cache(maxsize=256)(_parse_target)


class Owner(Responder, Protocol):
    """Receives a connection's requests and refusals, and answers them."""

    def taken(self, request: HttpRequest) -> None:
        """Take a complete request."""

    def expected(self) -> None:
        """Tell the client to send the body: it expects `100 Continue`."""

    def refuse(self, status: int) -> None:
        """Refuse invalid input with this HTTP status."""

    def room_for(self, request: HttpRequest, length: int) -> memoryview | None:
        """Memory for a large body; None: any will do."""


class RequestReader:
    """Parses what one client sends; `memory` counts its bodies."""

    def __init__(self, settings: ServerSettings, owner: Owner, hosts: HostRule, memory: BodyMemory) -> None:
        self._settings, self._owner, self._hosts, self._memory = settings, owner, hosts, memory
        self._parser = httptools.HttpRequestParser(self)
        self._incoming: HttpRequest | None = None
        self._url = b""
        self.body = IncomingBody(memory, settings.max_request_size, self._refuse)
        self._length = 0
        self._read = self._framing = self._span = 0
        """`_read`: bytes of the last read. `_framing`: bytes since the request began, or since its last
        body bytes. `_span`: bytes of all reads that hold a part of the request."""
        self._in_body = self._skips_body = self._replays = self._ended = self._has_two_hosts = False
        self._since: float | None = None

    @property
    def is_reading(self) -> bool:
        """Whether a request has begun and is incomplete."""
        return self._since is not None

    @property
    def path(self) -> bytes:
        """Path of the request that is being read, or as much of it as has come."""
        if not self._url.startswith(b"/"):
            with contextlib.suppress(httptools.HttpParserInvalidURLError):
                return httptools.parse_url(self._url).path or b""
        return self._url

    @property
    def is_in_body(self) -> bool:
        """Whether a request's head has come, and its body is incomplete."""
        return self._in_body

    @property
    def expected(self) -> int:
        """Bytes that the current body's announced length leaves to come; 0 without a body or a length."""
        return max(0, self._length - self.body.size) if self._in_body else 0

    def is_late(self, now: float) -> bool:
        """Whether the incomplete request has exceeded its time limit."""
        if self._since is None:
            return False
        settings = self._settings
        allowed = settings.header_timeout
        if self._in_body:
            allowed = settings.body_timeout + self.body.size / settings.min_body_rate
        return now - self._since > allowed

    def restart_clock(self) -> None:
        """Restart the request's time limit, because the server had stopped reading."""
        if self._since is not None:
            self._since = time.monotonic()

    def end(self) -> None:
        """Ignore all further input."""
        self._ended = True
        self._drop()

    def _drop(self) -> None:
        """Forget the request that is being read."""
        self._incoming, self._since = None, None
        self.body.drop()

    def release(self) -> None:
        """Drop the parser, which refers back to this reader.

        Otherwise both would stay in memory until the next garbage collection.
        """
        self.end()
        self._parser = cast(Any, None)

    def feed(self, data: bytes) -> None:
        """Parse bytes that the client sent."""
        if self._ended:
            return
        self._read = len(data)
        self._framing += self._read
        self._span += self._read
        try:
            self._parse(data)
        except httptools.HttpParserCallbackError as err:
            logger.error("a request could not be taken", exc_info=err.__context__ or err)
            self._refuse(500)
        except httptools.HttpParserInvalidMethodError:
            self._refuse_method(data)
        except httptools.HttpParserError as err:
            self._refuse(505 if str(err) == UNKNOWN_VERSION else 400)
        if self._framing > self._settings.max_header_size:
            self._refuse(431)

    def filled(self, count: int) -> None:
        """Note that so many bytes of a body have been read into its memory."""
        if self._ended:
            return
        self._framing = 0
        self.body.filled(count)
        if self._ended or self.body.size < self._length:
            return
        # The parser still waits for bytes that have not come its way.
        self._parser = httptools.HttpRequestParser(self)
        try:
            self.on_message_complete()
        except Exception:
            logger.exception("a request could not be taken")
            self._refuse(500)

    def _refuse_method(self, data: bytes) -> None:
        """Refuse what begins with a method that the parser does not know, or is no request."""
        target = target_of_unknown_method(data)
        self._url = target or b""
        self._refuse(400 if target is None else 405)

    def _refuse(self, status: int) -> None:
        if not self._ended:
            self.end()
            self._owner.refuse(status)

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as err:
                # The request is answered as if it had not asked for another protocol.
                data = data[err.args[0] :]
                if self._ended:
                    return
                self._parser = httptools.HttpRequestParser(self)
                if self._skips_body:
                    self._read_body()

    def _read_body(self) -> None:
        """Bring a fresh parser to the beginning of the body.

        The previous parser took the body for another protocol's data.
        """
        assert self._incoming is not None
        framing = [
            b"%b: %b\r\n" % (name, value)
            for name, value in self._incoming.headers
            if name.lower() in (b"content-length", b"transfer-encoding")
        ]
        self._skips_body, self._replays = False, True
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
        self._replays = False

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._replays or self._ended:
            return
        self._incoming = HttpRequest(self._owner, self._memory)
        self._url = b""
        self.body.drop()
        self._has_two_hosts = False
        self._length = 0
        self._span = self._read
        self._since = time.monotonic()

    def on_url(self, url: bytes) -> None:
        if not self._replays:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # Those after a chunked body are dropped: no proxy has looked at them.
        request = self._incoming
        if request is not None and not self._in_body:
            if value and value[-1] <= 32:
                value = value.rstrip(b" \t")
            request.headers.append((name, value))
            key = name.lower()
            if key == b"host" and key in request.by_name:
                self._has_two_hosts = True
            request.by_name.setdefault(key, value)

    def on_headers_complete(self) -> None:
        request, parser, settings = self._incoming, self._parser, self._settings
        if request is None or self._replays:
            return
        if self._span > settings.max_header_size:
            # What came with them may be of a body, or of other requests.
            size = sum(len(name) + len(value) + 4 for name, value in request.headers)
            if size + len(self._url) > settings.max_header_size:
                self._refuse(431)
        self._in_body, self._framing = True, 0
        method = parser.get_method()
        request.method = METHODS.get(method) or method.decode("ascii")
        version = parser.get_http_version()
        if version in ("1.0", "0.9"):
            request.chunks = request.keep_alive = False
        elif version == "1.1":
            request.keep_alive = parser.should_keep_alive()
        else:
            self._refuse(505)
        by_name = request.by_name
        length, encoding = by_name.get(b"content-length"), by_name.get(b"transfer-encoding")
        if length is not None:
            if not length.isdigit():
                self._refuse(400)
            elif int(length) > settings.max_request_size:
                self._refuse(413)
            else:
                self._length = int(length)
        if encoding is not None and self._is_encoded_otherwise(request):
            self._refuse(501)
        if request.method == "CONNECT":
            self._refuse(405)
        self._take_target(request)
        self._check_host(request)
        self._skips_body = (length is not None or encoding is not None) and parser.should_upgrade()
        if b"expect" in by_name and request.chunks:
            if by_name[b"expect"].lower() != b"100-continue":
                self._refuse(417)
            elif not self._ended:
                self._owner.expected()
        if self._length >= DIRECT and encoding is None and not (self._skips_body or self._ended):
            self._expect_large(request)

    def _expect_large(self, request: HttpRequest) -> None:
        room = self._owner.room_for(request, self._length)
        if room is None:
            try:
                room = memoryview(bytearray(self._length))
            except MemoryError:
                return  # It is gathered as it comes, and refused once that is too much.
        self.body.expect(room)

    def _check_host(self, request: HttpRequest) -> None:
        """Refuse a request that names no host, two, or one that is not the server's."""
        host = request.by_name.get(b"host")
        if host is None:
            if self._parser.get_http_version() not in ("1.0", "0.9"):
                self._refuse(400)
        elif self._has_two_hosts:
            self._refuse(400)
        elif status := self._hosts.status(host):
            self._refuse(status)

    @staticmethod
    def _is_encoded_otherwise(request: HttpRequest) -> bool:
        """Whether a transfer encoding other than `chunked` is named."""
        name = b"transfer-encoding"
        return any(key.lower() == name and value.lower() != b"chunked" for key, value in request.headers)

    def _take_target(self, request: HttpRequest) -> None:
        if self._url == b"*" and request.method == "OPTIONS":
            request.path = b"/"
            return
        try:
            parse = _parse_short_target if len(self._url) < _SHORT_TARGET else _parse_target
            request.path, request.query = parse(self._url)
        except httptools.HttpParserInvalidURLError:
            self._refuse(400)
            return
        if not request.path.startswith(b"/"):
            self._refuse(400)

    def on_body(self, body: bytes) -> None:
        self._framing = 0
        if not self._ended:
            self.body.add(body)

    def on_message_complete(self) -> None:
        request = self._incoming
        if request is None or self._skips_body or self._ended:
            return
        request.body, request.held = self.body.take()
        self._drop()
        self._in_body, self._framing, self._url = False, 0, b""
        self._owner.taken(request)
