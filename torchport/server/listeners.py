"""What clients ask: the APIs, and the addresses on which they are asked.

    listeners = Listeners(settings, access, registry, counts, tls=None, tracing=None)
    await listeners.listen()
    listeners.addresses()                # {"inference": "http://127.0.0.1:8080", ...}
    await asyncio.wait(listeners.ending(grace=20))

A module of its own, because it imports most of what the front needs: `main.py` does that while the workers
load their models.
"""

from __future__ import annotations

import asyncio
import importlib
import ssl
from typing import TYPE_CHECKING, Any

from torchport.server.api.inference import InferenceApi
from torchport.server.api.loop_lag import LoopLag
from torchport.server.api.management import ManagementApi
from torchport.server.api.metrics import MetricsApi
from torchport.server.api.prometheus import ServerCollector
from torchport.server.api.routing import by_address
from torchport.server.api.tokens import Access
from torchport.server.api.tracing import Tracing
from torchport.server.http.addresses import cannot_listen
from torchport.server.http.body_memory import BodyMemory
from torchport.server.http.server import HttpServer
from torchport.server.models.registry import Registry
from torchport.server.models.statistics import RequestCounts
from torchport.server.models.version import ModelVersion
from torchport.server.settings.address import Address
from torchport.server.settings.settings import ServerSettings
from torchport.server.wire import MetricValue

if TYPE_CHECKING:
    from torchport.server.grpc.server import GrpcServers


class Listeners:
    """The REST and gRPC servers of one front."""

    def __init__(
        self,
        settings: ServerSettings,
        access: Access,
        registry: Registry,
        counts: RequestCounts,
        *,
        tls: ssl.SSLContext | None,
        tracing: Tracing | None,
    ) -> None:
        self._settings, self._access, self._registry, self._counts = settings, access, registry, counts
        self._tls = tls
        self._collector = ServerCollector(
            registry, counts, system_metrics=not settings.disable_system_metrics
        )
        self._loop_lag = LoopLag()
        self._apis = (
            InferenceApi(settings, access, counts, registry, tracing),
            ManagementApi(settings, access, counts, registry),
            MetricsApi(settings, access, counts, self._collector, self._loop_lag),
        )
        self._memory = BodyMemory(settings.request_memory)
        self._servers: list[HttpServer] = []
        self._grpc: GrpcServers | None = None

    async def listen(self) -> None:
        """Listen on all addresses, HTTP's first.

        Raises:
            ServerError: an address is taken or does not exist.
        """
        self._loop_lag.start()
        for address, handle in by_address(self._settings.http_addresses, self._apis):
            tls = self._tls if address.scheme == "https" else None
            server = HttpServer(handle, address.host, address.port, self._settings, tls, self._memory)
            try:
                await server.start()
            except OSError as err:
                raise cannot_listen(address, err) from err
            self._servers.append(server)
        await self._listen_by_grpc()

    async def _listen_by_grpc(self) -> None:
        if not self._settings.enable_grpc:
            return
        # In a thread: the import takes a tenth of a second, and clients are answered by HTTP already.
        await asyncio.to_thread(importlib.import_module, "torchport.server.grpc.server")
        from torchport.server.grpc.server import GrpcServers

        self._grpc = GrpcServers(self._settings, self._access, self._registry, self._counts, self._memory)
        await self._grpc.start()

    def addresses(self) -> dict[str, str | int]:
        """URLs of the three APIs and ports of gRPC, by the names that they have in `server.json`."""
        servers, known = iter(self._servers), dict[Address, str]()
        urls = []
        for address in self._settings.http_addresses:
            if not address.port or address not in known:
                known[address] = next(servers).url
            urls.append(known[address])
        found: dict[str, str | int] = dict(zip(("inference", "management", "metrics"), urls, strict=True))
        if self._grpc is not None:
            found["grpc_inference"] = self._grpc.inference_port
            found["grpc_management"] = self._grpc.management_port
        return found

    def add_samples(self, version: ModelVersion, samples: list[MetricValue]) -> None:
        """Add values of a handler's own metrics."""
        self._collector.add_samples(version, samples)

    def begin_ending(self) -> None:
        """Listen and answer as before, but let clients go."""
        for server in self._servers:
            server.begin_ending()

    def ending(self, grace: float) -> list[asyncio.Task[Any]]:
        """Tasks that end when every request has been answered; gRPC's after `grace` seconds in any case."""
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[Any]] = [loop.create_task(server.end()) for server in self._servers]
        if self._grpc is not None:
            tasks.append(loop.create_task(self._grpc.stop(grace)))
        return tasks

    def close(self) -> None:
        """Close what is still open of HTTP, answered or not."""
        for server in self._servers:
            server.close()
