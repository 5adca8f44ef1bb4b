"""The gRPC servers: one for inference and the Open Inference Protocol, one for management.

    servers = GrpcServers(settings, access, registry, counts)
    await servers.start()
    servers.inference_port               # 7070, or what the system chose

They run on the event loop of the front. A message may have as many bytes as an HTTP body. Each is the
server's own (`torchport/server/grpc/http2/`) or grpcio's, as the setting `grpc_server` says.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Protocol

from torchport.errors import ServerError
from torchport.server.api.tokens import Access, KeyKind
from torchport.server.grpc.calls import Calls, Method
from torchport.server.grpc.health import HealthService
from torchport.server.grpc.inference import InferenceService
from torchport.server.grpc.management import ManagementService
from torchport.server.grpc.messages import INFERENCE, MANAGEMENT, OPEN_INFERENCE
from torchport.server.grpc.open_inference import OpenInferenceService
from torchport.server.grpc.predictions import room_in
from torchport.server.grpc.repository import RepositoryService
from torchport.server.http.body_memory import BodyMemory
from torchport.server.models.registry import Registry
from torchport.server.models.statistics import RequestCounts
from torchport.server.settings.address import Address
from torchport.server.settings.settings import ServerSettings


class _OneServer(Protocol):
    async def listen(self, host: str, port: int) -> int: ...

    async def stop(self, grace: float) -> None: ...


class GrpcServers:
    """Both servers. `inference_port` and `management_port` are 0 until they listen."""

    def __init__(
        self,
        settings: ServerSettings,
        access: Access,
        registry: Registry,
        counts: RequestCounts,
        memory: BodyMemory | None = None,
    ) -> None:
        self._settings = settings
        self._memory, log = memory or BodyMemory(settings.request_memory), settings.access_log
        counted = self._memory if settings.grpc_server == "grpcio" else None
        asking = Calls(
            access, KeyKind.INFERENCE, counts, memory=counted, access_log=log, room=room_in(registry)
        )
        managing = Calls(access, KeyKind.MANAGEMENT, counts, memory=counted, access_log=log)
        probing = Calls(access, None, counts, memory=counted, access_log=log)
        names = [f"{INFERENCE}.InferenceAPIsService", f"{MANAGEMENT}.ManagementAPIsService"]
        names += [f"{package}.GRPCInferenceService" for package in OPEN_INFERENCE]
        health = HealthService(probing, lambda: registry.is_ready, names).methods()
        self._inference = [
            *InferenceService(registry).methods(asking),
            *OpenInferenceService(registry).methods(asking),
            *RepositoryService(registry).methods(asking, managing),
            *health,
        ]
        self._management = [*ManagementService(registry).methods(managing), *health]
        self._calls = (asking, managing, probing)
        self._servers: list[_OneServer] = []
        self.inference_port = self.management_port = 0

    async def start(self) -> None:
        """Listen on both addresses.

        Raises:
            ServerError: an address is taken, the certificate cannot be read, or clients need a
                certificate and the server speaks no TLS.
        """
        settings = self._settings
        tls = _tls_context(settings)
        self.inference_port = await self._listen(
            "grpc_inference", settings.grpc_inference, self._inference, tls
        )
        self.management_port = await self._listen(
            "grpc_management", settings.grpc_management, self._management, tls
        )

    async def _listen(
        self, name: str, address: Address, methods: Sequence[Method], tls: ssl.SSLContext | None
    ) -> int:
        server = self._server(methods, tls)
        try:
            port = await server.listen(address.host, address.port)
        except OSError as err:
            raise ServerError(
                f"gRPC cannot listen on {address.endpoint}: stop what listens there, choose another with "
                f"{name}_port, or say --no-grpc"
            ) from err
        self._servers.append(server)
        return port

    def _server(self, methods: Sequence[Method], tls: ssl.SSLContext | None) -> _OneServer:
        # Each is imported where it is chosen: grpcio takes its time.
        if self._settings.grpc_server == "grpcio":
            from torchport.server.grpc.grpcio_server import GrpcioServer

            return GrpcioServer(methods, self._settings, self._calls)
        from torchport.server.grpc.http2.server import Http2Server

        return Http2Server(methods, self._settings, self._memory, tls)

    async def stop(self, grace: float) -> None:
        """Refuse new calls, answer those at hand within `grace` seconds, close.

        Calls that a client could keep open for ever are ended at once, with UNAVAILABLE.
        """
        for calls in self._calls:
            calls.stopping.set()
        await asyncio.gather(*(server.stop(grace) for server in self._servers))


def _tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    """The TLS context; None without TLS."""
    addresses = (settings.grpc_inference, settings.grpc_management)
    if not settings.enable_grpc_ssl:
        if settings.client_ca_file is not None and not all(a.is_loopback for a in addresses):
            raise ServerError(
                "client_ca_file asks for certificates of clients, and gRPC without TLS has none: say "
                "enable_grpc_ssl=true, or --no-grpc"
            )
        return None
    if settings.certificate_file is None or settings.private_key_file is None:
        raise ServerError("enable_grpc_ssl needs certificate_file and private_key_file, PEM files")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without this, a key with a password would have the server wait for somebody to type it.
        context.load_cert_chain(settings.certificate_file, settings.private_key_file, password=lambda: "")
        if settings.client_ca_file is not None:
            context.load_verify_locations(settings.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as err:
        raise ServerError(
            f"certificate_file, private_key_file or client_ca_file cannot be read: {err}"
        ) from err
    return context
