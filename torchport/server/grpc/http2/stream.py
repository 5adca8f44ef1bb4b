"""One call as a stream of HTTP/2: its messages in, its answer out, its deadline.

    stream.send([b"an answer"], limit)   # a message
    await stream.drained()               # until the client has taken it
    stream.end(StatusCode.OK)

A stream ends once: by its status, by the client's reset, or with its connection.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from torchport.server.errors import ApiError, InvalidRequest
from torchport.server.grpc.http2.frames import (
    CANCEL,
    NO_ERROR,
    data_header,
    reset,
    response_headers,
    trailers,
    window_update,
)
from torchport.server.grpc.http2.head import Head
from torchport.server.grpc.http2.incoming import Ahead, Incoming, Message, too_large
from torchport.server.grpc.status import StatusCode, code_of

if TYPE_CHECKING:
    from torchport.server.grpc.calls import Method
    from torchport.server.grpc.http2.connection import Http2Connection

STREAM_WINDOW = 1 << 20
"""Bytes that a client may send on a stream before they are asked for. The rest of a larger message is asked
for once its size is known."""

_AHEAD_BYTES = 1 << 12
"""Bytes of messages that were sent ahead which are put together at once."""

_TURN_BYTES = 1 << 16
"""Bytes that a stream sends before the next one sends, where several wait."""

Piece = bytes | bytearray | memoryview


class RequestTimeout(ApiError):
    """The client sends slower than a message must come."""

    http_status = 504
    kind = "RequestTimeoutException"


class CallEnded(Exception):
    """A method ends its call with a status that is not OK."""

    def __init__(self, code: StatusCode, details: str, metadata: tuple[tuple[str, str], ...]) -> None:
        super().__init__(details)
        self.code, self.details, self.metadata = code, details, metadata


class Stream:
    """A call of `method`, on a connection. It is the context of its method."""

    def __init__(self, connection: Http2Connection, number: int, head: Head, method: Method) -> None:
        self._connection, self.number, self.head, self.method = connection, number, head, method
        self.incoming = Incoming(self, connection.settings.max_request_size, connection.memory)
        self._messages: deque[Message] = deque()
        self._ahead = Ahead(connection.memory)
        self._reader: asyncio.Future[None] | None = None
        self.window_in = STREAM_WINDOW
        """Bytes that the client may send."""
        self.window_out = connection.initial_window_out
        """Bytes that the client takes."""
        self.task: asyncio.Task[None] | None = None
        self.begun = time.monotonic()
        self.is_remote_done = self.is_done = False
        """Whether the client has sent all; whether the call has its status, or is lost."""
        self._has_begun = False
        self._queue: deque[Piece] = deque()
        self._queued = 0
        self._last: tuple[StatusCode, str, tuple[tuple[str, str], ...]] | None = None
        self._writer: asyncio.Future[None] | None = None
        self.waiting_since: float | None = None
        self.sent = 0
        """Bytes that were sent since `waiting_since`, when the client began to keep the answer waiting."""
        self._trailing: tuple[tuple[str, str], ...] = ()
        self._timer: asyncio.TimerHandle | None = None
        if head.timeout is not None:
            self._timer = connection.loop.call_later(head.timeout, self._expire)

    # The context of the method.

    @property
    def metadata(self) -> list[tuple[bytes, bytes]]:
        return self.head.metadata

    def time_remaining(self) -> float | None:
        """Seconds until the client's deadline; None without one."""
        timeout = self.head.timeout
        return None if timeout is None else max(0.0, self.begun + timeout - time.monotonic())

    def peer(self) -> str:
        """The client's address."""
        return self._connection.peer

    def set_trailing_metadata(self, pairs: tuple[tuple[str, str], ...]) -> None:
        self._trailing = pairs

    async def abort(self, code: StatusCode, details: str, metadata: tuple[tuple[str, str], ...]) -> NoReturn:
        raise CallEnded(code, details, metadata)

    async def received(self) -> AsyncIterator[bytes | memoryview]:
        """The client's messages as they come, each counted in the memory until the next one is asked for."""
        while (message := await self._next()) is not None:
            try:
                yield await self.content(message)
            finally:
                message.release()

    async def content(self, message: Message) -> bytes | memoryview:
        """A message without its compression."""
        connection = self._connection
        return await message.content(
            self.head.encoding, connection.settings.max_request_size, connection.memory
        )

    async def _next(self) -> Message | None:
        while not self._messages:
            if self._ahead.waiting:
                self._parse_ahead()
            elif self.is_remote_done:
                if self.incoming.since is not None:
                    raise InvalidRequest("a message that is cut off")
                return None
            else:
                self._reader = self._connection.loop.create_future()
                await self._reader
        message = self._messages.popleft()
        self._let_send()
        return message

    def _parse_ahead(self) -> None:
        """Put the next messages together of what the client has sent ahead."""
        self.incoming.feed(memoryview(self._ahead.take(_AHEAD_BYTES)))

    # What the connection calls.

    def feed(self, piece: memoryview) -> None:
        """Take a piece of the client's messages; refuse what cannot be taken."""
        try:
            if self.method.takes_many and (self._ahead.waiting or self._messages):
                self._ahead.add(piece)
            else:
                self.incoming.feed(piece)
        except ApiError as err:
            self.refuse(err)
            return
        self._let_send()

    def advance(self, size: int) -> None:
        """Take note of bytes of the message at hand that were read to their place."""
        try:
            self.incoming.advance(size)
        except ApiError as err:
            self.refuse(err)

    def enforce_time_limits(self, now: float) -> None:
        """End the call if its client sends a message, or takes the answer, too slowly."""
        settings = self._connection.settings
        since = self.incoming.since
        if since is None and not (self.is_remote_done or self.method.takes_many):
            since = self.begun
        if since is not None and not self.is_done:
            allowed = settings.body_timeout + self.incoming.filled / settings.min_body_rate
            if now - since > allowed:
                self.refuse(RequestTimeout("a message did not come in time"))
        if self.waiting_since is not None:
            allowed = settings.body_timeout + self.sent / settings.min_body_rate
            if now - self.waiting_since > allowed:
                self.drop()

    def _let_send(self) -> None:
        """Let the client send the rest of the message at hand, and the next one unless some wait."""
        if self.is_remote_done or self.is_done:
            return
        wanted = self.incoming.missing - self.window_in
        if wanted <= 0 and self.method.takes_many and not (self._messages or self._ahead.waiting):
            wanted = STREAM_WINDOW - self.window_in if self.window_in < STREAM_WINDOW // 2 else 0
        if wanted > 0:
            self.window_in += wanted
            self._connection.write(window_update(self.number, wanted))

    def taken(self, message: Message) -> None:
        """Take a complete message.

        Raises:
            InvalidRequest: the method takes one, and this is another.
        """
        if self._messages and not self.method.takes_many:
            raise InvalidRequest("one message is expected")
        self._messages.append(message)
        self._wake()

    def remote_end(self) -> None:
        """Take note that the client has sent all."""
        self.is_remote_done = True
        if self.is_done:
            return
        if self.method.takes_many:
            self._wake()
        elif self.incoming.since is not None:
            self.refuse(InvalidRequest("a message that is cut off"))
        elif not self._messages:
            self.refuse(InvalidRequest("a message is missing"))
        else:
            self._connection.begin(self, self._messages.popleft())

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # The answer.

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
            self._writer = self._connection.loop.create_future()
            await self._writer

    def end(
        self, code: StatusCode, details: str = "", metadata: tuple[tuple[str, str], ...] | None = None
    ) -> None:
        """Give the call its status, after what was sent before."""
        if self._last is None and not self.is_done:
            self._last = code, details, self._trailing if metadata is None else metadata
            self.pump()

    def pump(self) -> bool:
        """Send what the client takes; whether it took some."""
        if self.is_done:
            return False
        connection, before = self._connection, self._queued
        out: list[Piece] = []
        if self._queued and not self._has_begun:
            self._has_begun = True
            out.append(response_headers(self.number))
        allowed, collected = _TURN_BYTES if len(connection.waiting) > 1 else self._queued, 0
        while self._queued and allowed > 0 and not connection.is_paused:
            size = min(self._queued, connection.max_frame_out, connection.window_out, self.window_out)
            if size <= 0:
                break
            out.append(data_header(size, self.number))
            self._take(size, out)
            connection.window_out -= size
            self.window_out -= size
            allowed -= size
            collected += size
            if collected >= _TURN_BYTES:
                # The connection may say after it that it takes no more.
                connection.write_all(out)
                out, collected = [], 0
        if not self._queued and self._last is not None:
            code, details, metadata = self._last
            out.append(trailers(self.number, code, details, metadata, only=not self._has_begun))
            self._finish(out)
        if out:
            connection.write_all(out)
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
        waiting = self._connection.waiting
        if self._queued and not self.is_done:
            if self.waiting_since is None:
                self.waiting_since, self.sent = time.monotonic(), 0
            self.sent += before - self._queued
            waiting[self.number] = self
            return
        self.waiting_since = None
        waiting.pop(self.number, None)
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    # The end.

    def refuse(self, error: ApiError) -> None:
        """End the call before its method does, because of what the client sends."""
        metadata = tuple((name.lower(), value) for name, value in error.headers.items())
        self.cut(code_of(error), str(error), metadata)

    def cut(self, code: StatusCode, details: str, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        """End the call now, whatever its method does; what was not sent is dropped."""
        if self.is_done:
            return
        self._queue.clear()
        self._queued = 0
        self._last = None
        self.end(code, details, metadata)
        self._cancel()

    def drop(self, code: int = CANCEL) -> None:
        """End the stream without a status: the client does not take it."""
        if not self.is_done:
            self._connection.write(reset(self.number, code))
            self.lost()

    def lost(self) -> None:
        """Forget the call: the client has reset it, or is gone."""
        if self.is_done:
            return
        self._queue.clear()
        self._queued = 0
        self._finish(None)
        self._note(0)
        self._cancel()

    def _finish(self, out: list[Piece] | None) -> None:
        self.is_done = True
        self._stop_timer()
        self.incoming.close()
        self._ahead.close()
        for message in self._messages:
            message.release()
        self._messages.clear()
        if out is not None and not self.is_remote_done:
            # The client need not send the rest.
            out.append(reset(self.number, NO_ERROR))
        self._connection.closed(self)

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def _expire(self) -> None:
        self.cut(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
