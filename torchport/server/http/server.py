"""An HTTP server on one address: accepts, watches and closes connections.

server = HttpServer(handle, "127.0.0.1", 8080, settings)
await server.start()
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from torchport.server.http.body_memory import BodyMemory
from torchport.server.http.connection import HttpConnection
from torchport.server.http.host_rule import HostRule
from torchport.server.http.message import Handler
from torchport.server.settings.settings import ServerSettings

READ_SIZE = 1 << 16
"""Maximum number of bytes of one read, but of large bodies."""


class HttpServer:
    """One listening address; `handle` is called with every request.

    Servers with the same `memory` share the bound on the bodies in flight.
    """

    def __init__(
        self,
        handle: Handler,
        host: str,
        port: int,
        settings: ServerSettings,
        tls: Any = None,
        memory: BodyMemory | None = None,
    ) -> None:
        self._memory = memory or BodyMemory(settings.request_memory)
        self._handle, self._host, self._port, self._settings, self._tls = handle, host, port, settings, tls
        self._hosts = HostRule.of(settings, host)
        self._buffer = memoryview(bytearray(READ_SIZE))
        self._connections: set[HttpConnection] = set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._is_ending = False

    @property
    def url(self) -> str:
        """URL of the server, with the actual port."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{port}"

    async def start(self) -> None:
        """Listen on the address.

        Raises:
            OSError: the address is taken or does not exist.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._new_connection,
            self._host,
            self._port,
            ssl=self._tls,
            # Until a handshake is over, a connection is in no count of ours.
            ssl_handshake_timeout=self._settings.header_timeout if self._tls else None,
            ssl_shutdown_timeout=self._settings.body_timeout if self._tls else None,
            backlog=2048,
        )
        self._sweeper = loop.create_task(self._sweep())

    def _new_connection(self) -> HttpConnection:
        connection = HttpConnection(
            self._handle, self._settings, self._connections, self._hosts, self._memory, self._buffer
        )
        connection.is_ending = self._is_ending
        return connection

    def begin_ending(self) -> None:
        """Accept connections as before, but say `connection: close` in every answer from now on."""
        self._is_ending = True
        for connection in self._connections:
            connection.is_ending = True

    async def end(self) -> None:
        """Accept no more connections, and return once the last one has been answered and closed."""
        self.begin_ending()
        await asyncio.sleep(0)  # Those that the system has accepted already are taken in this turn.
        if self._server is not None:
            self._server.close()
        while self._connections:
            now = time.monotonic()
            for connection in list(self._connections):
                connection.close_when_idle(now)
            await asyncio.sleep(0.02)

    def close(self) -> None:
        """Close everything now, answered or not."""
        if self._server is not None:
            self._server.close()
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
