"""The HTTP/2 server with methods that need no model, on an event loop of its own."""

import asyncio
import threading
from dataclasses import dataclass, field

import pytest

from torchport.server.grpc.calls import Method
from torchport.server.grpc.http2.server import Http2Server
from torchport.server.http.body_memory import BodyMemory
from torchport.server.http.event_loop import event_loop_factory
from torchport.server.settings.settings import ServerSettings

LIMIT = 8 << 20
"""Maximum bytes of a message."""


@dataclass
class Local:
    """A running server. `begun` and `cancelled` count the calls of `/t.T/Wait`."""

    settings: ServerSettings
    memory: BodyMemory = field(default_factory=lambda: BodyMemory(64 << 20))
    port: int = 0
    begun: int = 0
    cancelled: int = 0
    rooms: list = field(default_factory=list)

    def start(self) -> None:
        self.loop = (event_loop_factory() or asyncio.new_event_loop)()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.server = Http2Server(self._methods(), self.settings, self.memory)
        self.port = self.run(self.server.listen("127.0.0.1", 0))

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def stop(self) -> None:
        self.run(self.server.stop(0.0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    @property
    def running(self) -> int:
        return len(self.server._running)

    def _methods(self):
        return [
            Method(path="/t.T/Echo", answer=self._echo),
            Method(path="/t.T/Place", answer=self._echo, room=self._room),
            Method(path="/t.T/Wait", answer=self._wait),
            Method(path="/t.T/Fill", answer=self._fill),
            Method(path="/t.T/Pour", answer=self._pour, gives_many=True),
            Method(path="/t.T/Talk", answer=self._talk, takes_many=True, gives_many=True),
        ]

    def _room(self, size, beginning):
        self.rooms.append((size, bytes(beginning[:8]), memoryview(bytearray(size))))
        return self.rooms[-1][2] if beginning[:1] == b"a" else None

    async def _echo(self, data, context):
        return [data]

    async def _wait(self, data, context):
        self.begun += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _fill(self, data, context):
        """As many bytes as the message says."""
        return [bytes(int(bytes(data)))]

    async def _pour(self, data, context):
        """Messages of 64 KiB, as many as the message says."""
        for _ in range(int(bytes(data))):
            self.begun += 1
            yield [bytes(1 << 16)]

    async def _talk(self, messages, context):
        async for data in messages:
            yield [bytes(data)]


def local(**settings):
    return Local(ServerSettings(max_request_size=LIMIT, max_response_size=64 << 20, **settings))


@pytest.fixture(scope="module")
def here():
    server = local()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def hasty():
    """A server whose clients have little time."""
    server = local(header_timeout=0.2, body_timeout=0.2, min_body_rate=1 << 20)
    server.start()
    yield server
    server.stop()
