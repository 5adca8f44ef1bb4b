"""Reads compressed bodies: `Content-Encoding: gzip`, `deflate`, or several of them.

    await decompress(request, max_size=6_553_500)       # request.body is what it stands for

A body is decompressed a step at a time in the parsing thread. What it grows to is counted in the memory of
all bodies, step by step, and never exceeds `max_size`: some kilobytes can stand for gigabytes.
"""

from __future__ import annotations

import sys
import zlib

from torchport.server.errors import InvalidRequest, RequestTooLarge, ServiceUnavailable, UnsupportedEncoding
from torchport.server.http.body_memory import UNCOUNTED, BodyMemory, Held
from torchport.server.http.message import Body, HttpRequest
from torchport.server.http.parsing import in_parsing_thread, let_others_run

HEADER = b"content-encoding"

MAX_ENCODINGS = 3
"""Maximum number of encodings of one body; more are refused."""

MAX_MEMBERS = 1000
"""Maximum number of files in one gzip body: millions of empty ones would take seconds."""

STEP = 1 << 18
"""Maximum bytes that one step decompresses to: about 1 ms."""

_PIECE = 1 << 14
"""Bytes that are given to zlib at once."""

_NAMES = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}


def encodings_of(request: HttpRequest) -> list[str]:
    """The encodings of a request's body, in the order in which they were applied.

    Raises:
        UnsupportedEncoding: one is not known.
        InvalidRequest: they are too many.
    """
    values = [value.decode("latin-1") for name, value in request.headers if name.lower() == HEADER]
    names = [name.strip().lower() for value in values for name in value.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    for name in names:
        if name not in _NAMES:
            raise UnsupportedEncoding(name, ("gzip", "deflate"))
    if len(names) > MAX_ENCODINGS:
        raise InvalidRequest(
            f"Content-Encoding names {len(names)} encodings: at most {MAX_ENCODINGS} are expected"
        )
    return [_NAMES[name] for name in names]


async def decompress(request: HttpRequest, max_size: int) -> None:
    """Replace a request's body by what it stands for, and drop the header that said so.

    Raises:
        UnsupportedEncoding, InvalidRequest: the encoding is not known, or the body is broken.
        RequestTooLarge: the body grows beyond `max_size` bytes.
        ServiceUnavailable: the bodies of all requests take too much memory already.
    """
    for encoding in reversed(encodings_of(request)):
        request.body, request.held = await _decompressed(request, encoding, max_size)
    framing = (HEADER, b"content-length")
    request.headers = [pair for pair in request.headers if pair[0].lower() not in framing]
    for name in framing:
        request.by_name.pop(name, None)
    request.add_header(b"content-length", b"%d" % len(request.body))


async def _decompressed(request: HttpRequest, encoding: str, max_size: int) -> tuple[Body, Held | None]:
    memory = request.memory or BodyMemory(sys.maxsize)
    reading, body = _Compressed(encoding, request.body), bytearray()
    with _held(memory, 0) as held:
        while not reading.has_ended:
            room = min(STEP, max_size - len(body))
            if not memory.grow(held, room):
                raise _too_much()
            # One more than may come: it shows that the body is too large.
            body += await in_parsing_thread(reading.step, room + 1)
            if len(body) > max_size:
                raise RequestTooLarge(
                    f"the body, {len(request.body)} bytes of {encoding}, decompresses to more than "
                    f"max_request_size, which is {max_size} bytes"
                )
    return memoryview(body), None if len(body) <= UNCOUNTED else _held(memory, len(body))


def _held(memory: BodyMemory, size: int) -> Held:
    held = memory.hold(size)
    if held is None:
        raise _too_much()
    return held


def _too_much() -> ServiceUnavailable:
    return ServiceUnavailable("the bodies of all requests take max_request_memory already: try again later")


class _Compressed:
    """A compressed body that is being read."""

    def __init__(self, encoding: str, data: Body) -> None:
        self._encoding, self._data, self._at, self._members = encoding, memoryview(data), 0, 1
        self._bits = zlib.MAX_WBITS | 16
        if encoding == "deflate":
            # RFC 9110 means zlib's format; many clients send what is inside of it.
            self._bits = zlib.MAX_WBITS if _is_zlib(self._data) else -zlib.MAX_WBITS
        self._zlib = zlib.decompressobj(self._bits)
        self.has_ended = False

    def step(self, room: int) -> bytes:
        """The next bytes, at most so many.

        Raises:
            InvalidRequest: the body is broken.
        """
        pieces = []
        while room and not self.has_ended:
            pieces.append(self._piece(room))
            room -= len(pieces[-1])
            let_others_run()
        return b"".join(pieces)

    def _piece(self, room: int) -> bytes:
        given = self._data[self._at : self._at + _PIECE]
        try:
            found = self._zlib.decompress(given, room)
        except zlib.error as err:
            raise self._broken(str(err)) from err
        self._at += len(given) - len(self._zlib.unconsumed_tail) - len(self._zlib.unused_data)
        if self._zlib.eof:
            self._next_member()
        elif not found and not given:
            raise self._broken("it is cut off")
        return found

    def _next_member(self) -> None:
        if self._at == len(self._data):
            self.has_ended = True
            return
        if self._encoding == "deflate":
            raise self._broken(f"{len(self._data) - self._at} bytes come after its end")
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise self._broken(f"it has more than {MAX_MEMBERS} members")
        self._zlib = zlib.decompressobj(self._bits)

    def _broken(self, reason: str) -> InvalidRequest:
        return InvalidRequest(f"the body is no {self._encoding}, which Content-Encoding says it is: {reason}")


def _is_zlib(data: memoryview) -> bool:
    """Whether the data begin as RFC 1950 says."""
    return len(data) > 1 and data[0] & 15 == 8 and (data[0] << 8 | data[1]) % 31 == 0
