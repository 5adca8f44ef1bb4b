"""The sending half of a stream: an answer's messages and its status, as the client takes them.

answer.send([b"a message"], limit)
await answer.drained()               # until the client has taken it
answer.end(StatusCode.OK)
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from torchport.server.grpc.http2.frames import NO_ERROR, data_header, reset, response_headers, trailers
from torchport.server.grpc.http2.incoming import too_large
from torchport.server.grpc.status import StatusCode

_TURN_BYTES = 1 << 16
"""Bytes that a stream sends before the next one sends, where several wait."""

Piece = bytes | bytearray | memoryview
Metadata = tuple[tuple[str, str], ...]


class Writer(Protocol):
    """What a stream needs of its connection to send."""

    loop: asyncio.AbstractEventLoop
    waiting: dict[int, SendingHalf]
    """Streams whose answer waits for the client."""
    window_out: int
    initial_window_out: int
    max_frame_out: int
    is_paused: bool

    def write_all(self, pieces: Sequence[Piece]) -> None: ...


class SendingHalf:
    """The answer on a stream."""

    def __init__(self, writer: Writer, number: int) -> None:
        self._writer, self.number = writer, number
        self.window_out = writer.initial_window_out
        """Bytes that the client takes."""
        self.is_remote_done = self.is_done = False
        """Whether the client has sent all; whether the call has its status, or is lost."""
        self._has_begun = False
        self._queue: deque[Piece] = deque()
        self._queued = 0
        self._last: tuple[StatusCode, str, Metadata] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._trailing: Metadata = ()
        self.waiting_since: float | None = None
        self.sent = 0
        """Bytes that were sent since `waiting_since`, when the client began to keep the answer waiting."""

    def set_trailing_metadata(self, pairs: Metadata) -> None:
        """Set what is sent with the status."""
        self._trailing = pairs

    def send(self, pieces: Sequence[Piece], limit: int) -> None:
        """Take a message to send, of at most so many bytes. It goes with `drained` or `end`."""
        if self.is_done:
            return
        size = sum(map(len, pieces))
        if size > limit:
            raise too_large(size, limit, "Sent")
        self._queue.append(b"\0" + size.to_bytes(4, "big"))
        self._queue.extend(pieces)
        self._queued += size + 5

    async def drained(self) -> None:
        """Wait until the client has taken all that was sent."""
        self.pump()
        if self._queued and not self.is_done:
            self._drained = self._writer.loop.create_future()
            await self._drained

    def end(self, code: StatusCode, details: str = "", metadata: Metadata | None = None) -> None:
        """Give the call its status, after what was sent before."""
        if self._last is None and not self.is_done:
            self._last = code, details, self._trailing if metadata is None else metadata
            self.pump()

    def pump(self) -> bool:
        """Send what the client takes; whether it took some."""
        if self.is_done:
            return False
        writer, before = self._writer, self._queued
        out: list[Piece] = []
        if self._queued and not self._has_begun:
            self._has_begun = True
            out.append(response_headers(self.number))
        allowed, collected = _TURN_BYTES if len(writer.waiting) > 1 else self._queued, 0
        while self._queued and allowed > 0 and not writer.is_paused:
            size = min(self._queued, writer.max_frame_out, writer.window_out, self.window_out)
            if size <= 0:
                break
            out.append(data_header(size, self.number))
            self._take(size, out)
            writer.window_out -= size
            self.window_out -= size
            allowed -= size
            collected += size
            if collected >= _TURN_BYTES:
                # The connection may say after it that it takes no more.
                writer.write_all(out)
                out, collected = [], 0
        if not self._queued and self._last is not None:
            code, details, metadata = self._last
            out.append(trailers(self.number, code, details, metadata, only=not self._has_begun))
            if not self.is_remote_done:
                # The client need not send the rest.
                out.append(reset(self.number, NO_ERROR))
            self._finish()
        if out:
            writer.write_all(out)
        self._note(before)
        return self._queued < before

    def _take(self, size: int, out: list[Piece]) -> None:
        """Move so many bytes from the queue."""
        self._queued -= size
        while size:
            piece = self._queue.popleft()
            if len(piece) > size:
                view = memoryview(piece)
                self._queue.appendleft(view[size:])
                piece = view[:size]
            out.append(piece)
            size -= len(piece)

    def _note(self, before: int) -> None:
        """Take note of whether the client keeps the answer waiting."""
        waiting = self._writer.waiting
        if self._queued and not self.is_done:
            if self.waiting_since is None:
                self.waiting_since, self.sent = time.monotonic(), 0
            self.sent += before - self._queued
            waiting[self.number] = self
            return
        self.waiting_since = None
        waiting.pop(self.number, None)
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _discard(self) -> None:
        """Drop what was not sent."""
        self._queue.clear()
        self._queued = 0
        self._last = None

    def _finish(self) -> None:
        """Take note that the stream has ended."""
        raise NotImplementedError
