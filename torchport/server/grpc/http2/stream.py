"""One call as a stream of HTTP/2: its messages in, its answer out, its deadline.

    async for data in stream.received():
        stream.send([data], limit)
        await stream.drained()
    stream.end(StatusCode.OK)

A stream ends once: by its status, by the client's reset, or with its connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import NoReturn, Protocol

from torchport.server.errors import ApiError, InvalidRequest
from torchport.server.grpc.calls import Method
from torchport.server.grpc.http2.answer import Metadata, SendingHalf, Writer
from torchport.server.grpc.http2.frames import (
    CANCEL,
    reset,
    window_update,
)
from torchport.server.grpc.http2.head import Head
from torchport.server.grpc.http2.incoming import Ahead, Incoming, Message
from torchport.server.grpc.status import StatusCode, code_of
from torchport.server.http.body_memory import BodyMemory
from torchport.server.settings.settings import ServerSettings

STREAM_WINDOW = 1 << 20
"""Bytes that a client may send on a stream before they are asked for. The rest of a larger message is asked
for once its size is known."""

_AHEAD_BYTES = 1 << 12
"""Bytes of messages that were sent ahead which are put together at once."""


class RequestTimeout(ApiError):
    """The client sends slower than a message must come."""

    http_status = 504
    kind = "RequestTimeoutException"


class CallEnded(Exception):
    """A method ends its call with a status that is not OK."""

    def __init__(self, code: StatusCode, details: str, metadata: Metadata) -> None:
        super().__init__(details)
        self.code, self.details, self.metadata = code, details, metadata


class Connection(Writer, Protocol):
    """What a stream needs of its connection."""

    settings: ServerSettings
    memory: BodyMemory
    peer: str

    def write(self, data: bytes) -> None:
        """Write frames that are no part of an answer."""

    def begin(self, stream: Stream, message: Message) -> None:
        """Run the method of a call, whose message is there."""

    def closed(self, stream: Stream) -> None:
        """Take note that a stream has ended."""


class Stream(SendingHalf):
    """A call of `method`, on a connection. It is the context of its method."""

    def __init__(self, connection: Connection, number: int, head: Head, method: Method) -> None:
        super().__init__(connection, number)
        self._connection, self.head, self.method = connection, head, method
        self.incoming = Incoming(self, connection.settings.max_request_size, connection.memory)
        self._messages: list[Message] = []
        """Messages whose turn has not come."""
        self._ahead = Ahead(connection.memory) if method.takes_many else None
        self._reader: asyncio.Future[None] | None = None
        self.window_in = STREAM_WINDOW
        """Bytes that the client may send."""
        self.task: asyncio.Task[None] | None = None
        self.begun = time.monotonic()
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

    async def abort(self, code: StatusCode, details: str, metadata: Metadata) -> NoReturn:
        """End the call with a status that is not OK.

        Raises:
            CallEnded: always.
        """
        raise CallEnded(code, details, metadata)

    async def content(self, message: Message) -> bytes | memoryview:
        """A message without its compression."""
        connection = self._connection
        limit = connection.settings.max_request_size
        return await message.content(self.head.encoding, limit, connection.memory)

    async def received(self) -> AsyncIterator[bytes | memoryview]:
        """The client's messages as they come, each counted in the memory until the next one is asked for."""
        while (message := await self._next()) is not None:
            try:
                yield await self.content(message)
            finally:
                message.release()

    async def _next(self) -> Message | None:
        assert self._ahead is not None
        while not self._messages:
            if self._ahead.waiting:
                self.incoming.feed(memoryview(self._ahead.take(_AHEAD_BYTES)))
            elif not self.is_remote_done:
                self._reader = self._connection.loop.create_future()
                await self._reader
            elif self.incoming.since is not None:
                raise InvalidRequest("a message that is cut off")
            else:
                return None
        message = self._messages.pop(0)
        self._let_send()
        return message

    # What the connection calls.

    def feed(self, piece: memoryview) -> None:
        """Take a piece of the client's messages; refuse what cannot be taken."""
        try:
            if self._ahead is None:
                self.incoming.feed(piece)
            else:
                self._feed_many(piece, self._ahead)
        except ApiError as err:
            self.refuse(err)

    def _feed_many(self, piece: memoryview, ahead: Ahead) -> None:
        """Put the next messages together; keep the bytes of those for which it is too early."""
        while piece and not (self._messages or ahead.waiting):
            size = max(_AHEAD_BYTES, self.incoming.missing)
            self.incoming.feed(piece[:size])
            piece = piece[size:]
        if piece:
            ahead.add(piece)
        self._let_send()

    def advance(self, size: int) -> None:
        """Take note of bytes of the message at hand that were read to their place."""
        try:
            self.incoming.advance(size)
        except ApiError as err:
            self.refuse(err)

    def room(self, size: int, beginning: memoryview) -> memoryview | None:
        """Memory for a message of so many bytes, of which these are the first; None: any will do."""
        return None if self.method.room is None else self.method.room(size, beginning)

    def expects(self, size: int) -> None:
        """Let the client send the rest of a large message, of so many bytes with what is on its way."""
        self._ask_for(size - self.window_in)

    def _let_send(self) -> None:
        """Let the client send the next messages, unless some wait."""
        if (
            not (self._messages or (self._ahead and self._ahead.waiting))
            and self.window_in < STREAM_WINDOW // 2
        ):
            self._ask_for(STREAM_WINDOW - self.window_in)

    def _ask_for(self, size: int) -> None:
        if size > 0 and not (self.is_remote_done or self.is_done):
            self.window_in += size
            self._connection.write(window_update(self.number, size))

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
            self._connection.begin(self, self._messages.pop())

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

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

    # The end.

    def refuse(self, error: ApiError) -> None:
        """End the call before its method does, because of what the client sends."""
        metadata = tuple((name.lower(), value) for name, value in error.headers.items())
        self.cut(code_of(error), str(error), metadata)

    def cut(self, code: StatusCode, details: str, metadata: Metadata = ()) -> None:
        """End the call now, whatever its method does; what was not sent is dropped."""
        if not self.is_done:
            self._discard()
            self.end(code, details, metadata)
            self._cancel()

    def drop(self, code: int = CANCEL) -> None:
        """End the stream without a status: the client does not take it."""
        if not self.is_done:
            self._connection.write(reset(self.number, code))
            self.lost()

    def lost(self) -> None:
        """Forget the call: the client has reset it, or is gone."""
        if not self.is_done:
            self._discard()
            self._finish()
            self._note(0)
            self._cancel()

    def _finish(self) -> None:
        self.is_done = True
        if self._timer is not None:
            self._timer.cancel()
        self.incoming.close()
        if self._ahead is not None:
            self._ahead.close()
        for message in self._messages:
            message.release()
        self._messages.clear()
        self._connection.closed(self)

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def _expire(self) -> None:
        self.cut(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
