"""What a connection of HTTP/2 reads: bytes to frames.

Each read is worked off within a budget of frames; the rest waits for the next turn of the event loop, so
that a flood of frames keeps nobody else waiting. Data is handed on as it comes; large messages are read to
where they stay. The other frames are handed on once they are whole.
"""

from __future__ import annotations

import asyncio
import time
from typing import cast

from torchport.server.grpc.http2 import frames as h2
from torchport.server.grpc.http2.frames import ConnectionFault
from torchport.server.grpc.http2.stream import Stream

MAX_FRAME = 1 << 20
"""Maximum bytes of a frame of data that a client may send."""

MAX_BLOCK = 1 << 15
"""Maximum bytes of another frame, and of a header block. The connection ends beyond it."""

_PER_TURN = 256
"""Frames that one turn works off."""

_BEGINNING = 8
_PIECE = 32
"""A frame that begins a call counts as so many; each but those of data as one more for so many bytes."""

_DIRECT_BYTES = 1 << 15
"""Bytes of a frame from which they are read to where they stay."""


class FrameReader(asyncio.BufferedProtocol):
    """The reading half of a connection. `buffer` is where all connections of a server read."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._preface = h2.PREFACE
        """What is missing of the preface."""
        self.is_open = False
        """Whether the client's settings have come."""
        self._rest = b""
        """What was read and could not be worked off: the beginning of a frame, or what waits for its turn."""
        self._turn: asyncio.Handle | None = None
        self._closing = False
        self._data: Stream | None = None
        """The stream of the frame of data at hand; None if its data is dropped."""
        self._data_left = self._padding_left = 0
        """Bytes of that frame that have not come."""
        self._data_ends = self._direct = False
        self._in_block = False
        """Whether a header block continues in the next frame."""
        self.reading_since: float | None = time.monotonic()
        """When the preface, or an incomplete frame, began; None if there is no such thing."""

    # What the connection does with frames.

    def frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Take a whole frame, which is none of data."""
        raise NotImplementedError

    def begin_data(self, number: int, size: int) -> Stream | None:
        """The stream whose data is in a frame of so many bytes; None if it is to be dropped."""
        raise NotImplementedError

    def worked_off(self) -> None:
        """Do once what the frames of one turn have asked for."""
        raise NotImplementedError

    def fault(self, error: ConnectionFault) -> None:
        """End the connection: the client breaks the protocol."""
        raise NotImplementedError

    # What the event loop calls.

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._data_left >= _DIRECT_BYTES and self._data is not None and not self._rest:
            space = self._data.incoming.space()
            if space is not None and len(space) >= _DIRECT_BYTES:
                self._direct = True
                return space[: self._data_left]
        self._direct = False
        return self._buffer

    def buffer_updated(self, size: int) -> None:
        if self._closing:
            return
        try:
            if self._direct:
                self._take_direct(size)
                return
            read = self._buffer[:size]
            if self._rest:
                self._rest += bytes(read)
                if self._turn is None:
                    self._work_off_rest()
            else:
                used = self._work_off(read)
                if used < size and not self._closing:
                    self._rest = bytes(read[used:])
        except ConnectionFault as err:
            self.fault(err)
        self._watch_reading()
        self.worked_off()

    # Reading.

    def _work_off_rest(self) -> None:
        rest = self._rest
        used = self._work_off(memoryview(rest))
        self._rest = b"" if self._closing else rest[used:]

    def _take_turn(self) -> None:
        """Work off what waits for its turn."""
        self._turn = None
        if self._closing:
            return
        try:
            self._work_off_rest()
        except ConnectionFault as err:
            self.fault(err)
        if self._turn is None and not self._closing:
            self._transport.resume_reading()
        self._watch_reading()
        self.worked_off()

    def _watch_reading(self) -> None:
        """Take note of when an incomplete frame began."""
        is_incomplete = bool(self._rest) or self._in_block or not self.is_open
        if not is_incomplete or self._turn is not None:
            self.reading_since = None
        elif self.reading_since is None:
            self.reading_since = time.monotonic()

    def _work_off(self, read: memoryview) -> int:
        """Work off what was read; the number of bytes that need not be kept."""
        at, end, budget = 0, len(read), _PER_TURN
        if self._preface:
            at = min(len(self._preface), end)
            if read[:at] != self._preface[:at]:
                raise ConnectionFault(h2.PROTOCOL_ERROR, "no preface of HTTP/2")
            self._preface = self._preface[at:]
        while not self._closing:
            if self._data_left or self._padding_left:
                if at == end:
                    break
                at += self._take_data(read[at:])
                continue
            if end - at < h2.HEADER.size:
                break
            if budget <= 0:
                self._wait_for_turn()
                break
            high, low, kind, flags, number = h2.HEADER.unpack_from(read, at)
            size, number = high << 8 | low, number & h2.MAX_STREAM_ID
            body = at + h2.HEADER.size
            if size > (MAX_FRAME if kind == h2.DATA else MAX_BLOCK):
                raise ConnectionFault(h2.FRAME_SIZE_ERROR, "a frame that is too large")
            if kind == h2.DATA and not flags & h2.PADDED and size <= end - body:
                at = body + size
                self._take_whole_data(number, flags, read[body:at])
                budget -= 1
            elif kind == h2.DATA:
                has_padding = flags & h2.PADDED
                if has_padding and not size:
                    raise ConnectionFault(h2.FRAME_SIZE_ERROR, "a padded frame without padding")
                if has_padding and body == end:
                    break
                self._begin_data(number, size, flags, read[body] if has_padding else None)
                at = body + (1 if has_padding else 0)
                budget -= 1
            elif end - body < size:
                break
            else:
                at = body + size
                self._whole(kind, flags, number, bytes(read[body:at]))
                budget -= (_BEGINNING if kind == h2.HEADERS else 1) + size // _PIECE
        return at

    def _wait_for_turn(self) -> None:
        if self._turn is None:
            self._turn = self.loop.call_soon(self._take_turn)
            self._transport.pause_reading()

    def _whole(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if not self.is_open and kind != h2.SETTINGS:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "settings are expected first")
        if self._in_block and kind != h2.CONTINUATION:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "a header block is cut off")
        self.frame(kind, flags, number, payload)

    def _take_whole_data(self, number: int, flags: int, data: memoryview) -> None:
        """Take a frame of data that is all there."""
        if self._in_block or not self.is_open:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "data in a wrong place")
        stream = self.begin_data(number, len(data))
        if stream is None:
            return
        if data:
            stream.feed(data)
        if flags & h2.END_STREAM and not stream.is_done:
            stream.remote_end()

    def _begin_data(self, number: int, size: int, flags: int, padding: int | None) -> None:
        if self._in_block or not self.is_open:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "data in a wrong place")
        self._data_ends = bool(flags & h2.END_STREAM)
        self._data = self.begin_data(number, size)
        if padding is not None:
            size -= 1
            if padding > size:
                raise ConnectionFault(h2.PROTOCOL_ERROR, "more padding than frame")
            self._padding_left = padding
            size -= padding
        self._data_left = size
        if not size and not self._padding_left:
            self._end_data()

    def _take_data(self, read: memoryview) -> int:
        """Take what is there of the frame's data and padding; the bytes used."""
        size = min(len(read), self._data_left)
        if size:
            self._data_left -= size
            if self._data is not None and not self._data.is_done:
                self._data.feed(read[:size])
        padding = min(len(read) - size, self._padding_left) if not self._data_left else 0
        self._padding_left -= padding
        if not self._data_left and not self._padding_left:
            self._end_data()
        return size + padding

    def _take_direct(self, size: int) -> None:
        """Take note of data that was read to where it stays."""
        self._data_left -= size
        if self._data is not None and not self._data.is_done:
            self._data.advance(size)
        if not self._data_left and not self._padding_left:
            self._end_data()

    def _end_data(self) -> None:
        stream, self._data = self._data, None
        if stream is not None and self._data_ends and not stream.is_done:
            stream.remote_end()
