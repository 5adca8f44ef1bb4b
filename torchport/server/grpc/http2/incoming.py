"""The messages that a client sends on one stream, put together from pieces.

    incoming = Incoming(owner, limit=6_553_500, memory=memory)
    incoming.feed(piece)                 # owner.taken(message) for each that is complete

A message is five bytes, of which the last four are its size, and the message. A large one goes straight to
where it stays; its bytes are counted in the memory of all bodies as they come.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from torchport.server.errors import ApiError, InvalidRequest, RequestTooLarge, ServiceUnavailable
from torchport.server.http.body_memory import UNCOUNTED, BodyMemory, Held
from torchport.server.http.parsing import INLINE_BYTES, in_parsing_thread

COUNTED_AHEAD = 1 << 16
"""Bytes of a message that are counted at once."""

_PREFIX = 5

_WINDOW_BITS = {b"gzip": zlib.MAX_WBITS | 16, b"deflate": zlib.MAX_WBITS}
"""The compressions of messages that are understood, and what zlib calls them."""


class UnknownCompression(ApiError):
    """A message is compressed in a way that no answer of the server has offered."""

    http_status = 501
    kind = "NotImplementedException"


@dataclass(slots=True)
class Message:
    """A message as it was sent. `held` counts its bytes as long as it lives; None for a small one."""

    data: bytes | memoryview
    is_compressed: bool
    held: Held | None = None

    def release(self) -> None:
        """Count the message no longer."""
        if self.held is not None:
            self.held.release()

    async def content(self, encoding: bytes, limit: int, memory: BodyMemory) -> bytes | memoryview:
        """The message without its compression.

        Raises:
            RequestTooLarge: it has more than `limit` bytes.
            InvalidRequest: it is not compressed as it says.
            UnknownCompression, ServiceUnavailable: it cannot be had.
        """
        if not self.is_compressed:
            return self.data
        if encoding == b"identity":
            raise InvalidRequest("a compressed message in a call without compression")
        bits = _WINDOW_BITS.get(encoding)
        if bits is None:
            raise UnknownCompression(
                f"messages compressed by {encoding[:40].decode('latin-1')!r}: gzip or deflate is expected"
            )
        if len(self.data) <= INLINE_BYTES >> 4:
            content = _decompressed(self.data, bits, limit)
        else:
            content = await in_parsing_thread(_decompressed, self.data, bits, limit)
        if len(content) > UNCOUNTED:
            self.release()
            self.held = memory.hold(len(content))
            if self.held is None:
                raise full()
        self.data = content
        return content


def _decompressed(data: bytes | memoryview, bits: int, limit: int) -> bytes:
    reader = zlib.decompressobj(bits)
    try:
        content = reader.decompress(data, limit + 1)
    except zlib.error as err:
        raise InvalidRequest(f"a message that is not compressed as it says: {err}") from err
    if len(content) > limit:
        raise too_large(len(content), limit)
    if not reader.eof:
        raise InvalidRequest("a compressed message that is cut off")
    return content


def too_large(size: int, limit: int, which: str = "Received") -> RequestTooLarge:
    """The refusal of a message, in gRPC's words."""
    return RequestTooLarge(f"{which} message larger than max ({size} vs. {limit})")


def full() -> ServiceUnavailable:
    """The refusal of a message for which there is no memory."""
    return ServiceUnavailable("the messages of all requests take max_request_memory already: try again later")


class Owner(Protocol):
    """Whose messages they are."""

    def taken(self, message: Message) -> None:
        """Take a complete message."""

    def room(self, size: int, beginning: memoryview) -> memoryview | None:
        """Memory for a message of so many bytes, of which these are the first; None: any will do."""

    def expects(self, size: int) -> None:
        """Take note that a message of so many bytes has begun, and is not whole."""

    def refuse(self, error: ApiError) -> None:
        """End the call, because of its messages."""


class _Nobody:
    """The owner of what is closed. Without it, each call would stay until a garbage collection."""

    def taken(self, message: Message) -> None: ...

    def room(self, size: int, beginning: memoryview) -> memoryview | None: ...

    def expects(self, size: int) -> None: ...

    def refuse(self, error: ApiError) -> None: ...


_NOBODY = _Nobody()


class Incoming:
    """The messages of one stream. `feed` raises an `ApiError` for a message that is refused."""

    __slots__ = (
        "_buffer",
        "_compressed",
        "_counted",
        "_gives_way",
        "_held",
        "_limit",
        "_memory",
        "_owner",
        "_prefix",
        "filled",
        "since",
        "size",
    )

    def __init__(self, owner: Owner, limit: int, memory: BodyMemory) -> None:
        self._owner, self._limit, self._memory = owner, limit, memory
        self._prefix = b""
        self._buffer: memoryview | None = None
        self._compressed = False
        self._held: Held | None = None
        self._counted = 0
        self.size = self.filled = 0
        """Bytes of the message that is arriving, and those of them that are there."""
        self.since: float | None = None
        """When the first byte of an incomplete message came; None if there is no such message."""
        self._gives_way = False

    @property
    def missing(self) -> int:
        """Bytes that the message at hand still needs, as far as its size is known."""
        return 0 if self._buffer is None else self.size - self.filled

    def feed(self, piece: memoryview) -> None:
        """Take a piece of what the client sends.

        Raises:
            RequestTooLarge, InvalidRequest, ServiceUnavailable: the message is refused.
        """
        at, end = 0, len(piece)
        while at < end:
            if self._buffer is not None:
                used = min(end - at, self.size - self.filled)
                self._buffer[self.filled : self.filled + used] = piece[at : at + used]
                at += used
                self.advance(used)
                continue
            if self._prefix or end - at < _PREFIX:
                used = min(_PREFIX - len(self._prefix), end - at)
                self._prefix += bytes(piece[at : at + used])
                at += used
                if len(self._prefix) < _PREFIX:
                    self.since = self.since or time.monotonic()
                    return
                prefix, self._prefix = self._prefix, b""
            else:
                prefix = bytes(piece[at : at + _PREFIX])
                at += _PREFIX
            size = self._begin(prefix)
            if size <= end - at and size <= UNCOUNTED:
                self._end(bytes(piece[at : at + size]))
                at += size
            else:
                room = None if self._compressed else self._owner.room(size, piece[at:])
                self._buffer = np.empty(size, np.uint8).data if room is None else room
                self._memory.uploads.add(self)
                self.since = self.since or time.monotonic()
                self._owner.expects(size)

    def _begin(self, prefix: bytes) -> int:
        flag, self.size, self.filled = prefix[0], int.from_bytes(prefix[1:], "big"), 0
        if flag > 1:
            raise InvalidRequest(f"a message's flag is {flag}: 0 or 1 is expected")
        if self.size > self._limit:
            raise too_large(self.size, self._limit)
        self._compressed = flag == 1
        return self.size

    def space(self) -> memoryview | None:
        """Where the next bytes of the message at hand belong, for who reads them there."""
        return None if self._buffer is None else self._buffer[self.filled :]

    def advance(self, size: int) -> None:
        """Take note of bytes that are in their place.

        Raises:
            ServiceUnavailable: there is no memory for more.
        """
        self.filled += size
        if self.filled > max(self._counted, UNCOUNTED):
            self._count()
        if self.filled == self.size:
            assert self._buffer is not None
            self._end(self._buffer if self.size > UNCOUNTED else bytes(self._buffer))

    def _count(self) -> None:
        more = min(self.size, self.filled + COUNTED_AHEAD) - self._counted
        if self._held is None:
            self._held = self._memory.hold(more)
            has_room = self._held is not None
        else:
            has_room = self._memory.grow(self._held, more)
        self._counted += more
        if not has_room or self._gives_way:
            raise full()

    def _end(self, data: bytes | memoryview) -> None:
        message = Message(data, self._compressed, self._held)
        self._forget()
        self._owner.taken(message)

    def _forget(self) -> None:
        self._memory.uploads.discard(self)
        self._buffer, self._held, self._counted, self.since = None, None, 0, None

    def close(self) -> None:
        """Drop the message at hand, and the owner, who refers to this."""
        if self._held is not None:
            self._held.release()
        self._forget()
        self._owner = _NOBODY

    # What the memory of all bodies asks.

    def occupation(self) -> float:
        """Bytes of the incomplete message, times the seconds since it began."""
        return self.filled * (time.monotonic() - (self.since or 0.0))

    def give_way(self) -> None:
        """Refuse the incomplete message, because all of them take too much memory."""
        self._gives_way = True
        self._memory.uploads.discard(self)
        if self._held is not None:
            self._held.release()
        # Not at once: it may be this message whose next bytes ask for room.
        asyncio.get_running_loop().call_soon(self._owner.refuse, full())


class Ahead:
    """Bytes of messages that a client sends before the method asks for them; not more than a window."""

    __slots__ = ("_bytes", "_held", "_memory")

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._bytes = bytearray()
        self._held: Held | None = None

    @property
    def waiting(self) -> int:
        return len(self._bytes)

    def add(self, piece: memoryview) -> None:
        """Keep a piece.

        Raises:
            ServiceUnavailable: there is no memory for it.
        """
        self._bytes += piece
        if self._held is None and len(self._bytes) > UNCOUNTED:
            self._held = self._memory.hold(len(self._bytes))
            if self._held is None:
                raise full()
        elif self._held is not None and not self._memory.grow(self._held, len(piece)):
            raise full()

    def take(self, size: int) -> bytes:
        """The first bytes."""
        piece = bytes(self._bytes[:size])
        del self._bytes[:size]
        if not self._bytes:
            self.close()
        return piece

    def close(self) -> None:
        """Drop all."""
        self._bytes.clear()
        if self._held is not None:
            self._held.release()
            self._held = None
