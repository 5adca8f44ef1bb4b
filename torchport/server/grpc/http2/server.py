"""A gRPC server on one address: listens, runs the methods of calls, closes connections.

server = Http2Server(methods, settings, memory, tls=None)
await server.listen("127.0.0.1", 7070)
await server.stop(20.0)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Iterable

from torchport.server.errors import ApiError
from torchport.server.grpc.calls import Method
from torchport.server.grpc.http2.connection import Http2Connection
from torchport.server.grpc.http2.incoming import Message
from torchport.server.grpc.http2.stream import CallEnded, Stream
from torchport.server.grpc.status import StatusCode
from torchport.server.http.body_memory import BodyMemory
from torchport.server.settings.settings import ServerSettings

logger = logging.getLogger(__name__)

_BUFFER_BYTES = 1 << 18
"""Bytes of one read."""

_FRAMING = 1 << 16
"""Maximum bytes of a message beyond the answer in it; a larger message is refused."""


class Http2Server:
    """One listening address. `memory` counts the messages of all calls."""

    def __init__(
        self,
        methods: Iterable[Method],
        settings: ServerSettings,
        memory: BodyMemory,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.settings, self.memory, self._tls = settings, memory, tls
        self._methods = {method.path: method for method in methods}
        self.buffer = memoryview(bytearray(_BUFFER_BYTES))
        self.connections: set[Http2Connection] = set()
        self.is_ending = False
        self._running: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def listen(self, host: str, port: int) -> int:
        """Listen on the address; its port.

        Raises:
            OSError: the address is taken or does not exist.
        """
        loop = asyncio.get_running_loop()
        if self._tls is not None:
            self._tls.set_alpn_protocols(["h2"])
        self._server = await loop.create_server(
            lambda: Http2Connection(self),
            host,
            port,
            ssl=self._tls,
            # Until a handshake is over, a connection is in no count of ours.
            ssl_handshake_timeout=self.settings.header_timeout if self._tls else None,
            ssl_shutdown_timeout=self.settings.body_timeout if self._tls else None,
            backlog=2048,
        )
        self._sweeper = loop.create_task(self._sweep())
        return int(self._server.sockets[0].getsockname()[1])

    # What connections ask.

    def method(self, path: str) -> Method | None:
        """The method by its path."""
        return self._methods.get(path)

    def has_room(self) -> bool:
        """Whether one more call may begin."""
        return len(self._running) < self.settings.max_connections

    def begin(self, stream: Stream, message: Message | None) -> None:
        """Run the method of a call; None if it takes many messages."""
        task = asyncio.get_running_loop().create_task(self._run(stream, message))
        stream.task = task
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, stream: Stream, message: Message | None) -> None:
        try:
            given = stream.received() if message is None else await stream.content(message)
            answer, limit = stream.method.answer, self.settings.max_response_size + _FRAMING
            if stream.method.gives_many:
                async with contextlib.aclosing(answer(given, stream)) as messages:
                    async for pieces in messages:
                        stream.send(pieces, limit)
                        await stream.drained()
            else:
                stream.send(await answer(given, stream), limit)
            stream.end(StatusCode.OK)
        except CallEnded as err:
            stream.task = None
            stream.end(err.code, err.details, err.metadata)
        except ApiError as err:
            stream.task = None
            stream.refuse(err)
        except asyncio.CancelledError:
            # By the client, its deadline or the end of the server: each has given the call its status.
            stream.task = None
            stream.cut(StatusCode.CANCELLED, "")
            raise
        except Exception:
            stream.task = None
            logger.exception("%s", stream.method.path)
            stream.cut(StatusCode.INTERNAL, "the server failed")
        finally:
            if message is not None:
                message.release()

    # The end.

    async def stop(self, grace: float) -> None:
        """Accept no more connections, answer what comes until clients know of the end, close."""
        self.is_ending = True
        await asyncio.sleep(0)  # Those that the system has accepted already are taken in this turn.
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.begin_ending()
        until = time.monotonic() + grace
        while self.connections and time.monotonic() < until:
            await asyncio.sleep(0.02)
        for connection in list(self.connections):
            connection.close()
        if self._running:
            await asyncio.wait(self._running, timeout=1.0)
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            # gRPC's clients keep connections that they do not use; there is room for most of them.
            is_tight = len(self.connections) > 0.75 * self.settings.max_connections
            for connection in list(self.connections):
                connection.enforce_time_limits(now)
                if is_tight and connection.is_idle(now):
                    connection.begin_ending()
