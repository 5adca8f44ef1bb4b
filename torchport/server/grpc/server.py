"""The gRPC servers: one for inference and the Open Inference Protocol, one for management.

    servers = GrpcServers(settings, access, registry, counts)
    await servers.start()
    servers.inference_port               # 7070, or what the system chose

They run on the event loop of the front. A message may have as many bytes as an HTTP body.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from typing import Any

import grpc
import grpc.aio

from torchport.errors import ServerError
from torchport.server.api.tokens import Access, KeyKind
from torchport.server.grpc.calls import Calls
from torchport.server.grpc.health import HealthService
from torchport.server.grpc.inference import InferenceService
from torchport.server.grpc.management import ManagementService
from torchport.server.grpc.messages import INFERENCE, MANAGEMENT, OPEN_INFERENCE
from torchport.server.grpc.open_inference import OpenInferenceService
from torchport.server.http.body_memory import BodyMemory
from torchport.server.models.registry import Registry
from torchport.server.models.statistics import RequestCounts
from torchport.server.settings.address import Address
from torchport.server.settings.settings import ServerSettings

QUIET_S = 0.3
"""Seconds without a new call after which the clients of an ending server are taken to wait for answers."""

HELD_BACK_S = 3.0
"""Maximum seconds for which answers are held back when the server ends."""

_FRAMING = 1 << 16
"""Maximum bytes of a message beyond the answer in it; gRPC refuses larger messages."""


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
        memory, log = memory or BodyMemory(settings.request_memory), settings.access_log
        asking = Calls(access, KeyKind.INFERENCE, counts, memory=memory, access_log=log)
        managing = Calls(access, KeyKind.MANAGEMENT, counts, memory=memory, access_log=log)
        probing = Calls(access, None, counts, memory=memory, access_log=log)
        names = [f"{INFERENCE}.InferenceAPIsService", f"{MANAGEMENT}.ManagementAPIsService"]
        names += [f"{package}.GRPCInferenceService" for package in OPEN_INFERENCE]
        health = HealthService(probing, lambda: registry.is_ready, names).handler()
        self._inference = [
            InferenceService(registry).handler(asking),
            *OpenInferenceService(registry).handlers(asking),
            health,
        ]
        self._management = [ManagementService(registry).handler(managing), health]
        self._calls = (asking, managing, probing)
        self._servers: list[Any] = []
        self.inference_port = self.management_port = 0

    async def start(self) -> None:
        """Listen on both addresses.

        Raises:
            ServerError: an address is taken, the certificate cannot be read, or clients need a
                certificate and the server speaks no TLS.
        """
        settings = self._settings
        credentials = _credentials(settings)
        self.inference_port = await self._listen(
            "grpc_inference", settings.grpc_inference, self._inference, credentials
        )
        self.management_port = await self._listen(
            "grpc_management", settings.grpc_management, self._management, credentials
        )

    async def _listen(self, name: str, address: Address, services: list[Any], credentials: Any) -> int:
        settings = self._settings
        server = grpc.aio.server(
            maximum_concurrent_rpcs=settings.max_connections,
            options=[
                ("grpc.max_receive_message_length", settings.max_request_size),
                ("grpc.max_send_message_length", settings.max_response_size + _FRAMING),
                # Another server's port is not to be shared with it by accident.
                ("grpc.so_reuseport", 0),
            ],
        )
        server.add_generic_rpc_handlers(services)
        try:
            if credentials is None:
                port = server.add_insecure_port(address.endpoint)
            else:
                port = server.add_secure_port(address.endpoint, credentials)
        except RuntimeError as err:
            raise ServerError(
                f"gRPC cannot listen on {address.endpoint}: stop what listens there, choose another with "
                f"{name}_port, or say --no-grpc"
            ) from err
        self._servers.append(server)
        await server.start()
        return int(port)

    async def stop(self, grace: float) -> None:
        """Refuse new calls, answer those at hand within `grace` seconds, close.

        Calls that a client could keep open for ever are ended at once, with UNAVAILABLE.
        """
        for calls in self._calls:
            calls.stopping.set()
        await self._hold_back()
        stopping = asyncio.gather(*(server.stop(grace) for server in self._servers))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(stopping), QUIET_S)
        for calls in self._calls:
            calls.may_end.set()
        await stopping

    async def _hold_back(self) -> None:
        """Answer nothing until no new calls come.

        gRPC cancels calls that arrive between its stop and the client's notice of that. A client that waits
        for an answer sends none.
        """
        begun, since = 0, time.monotonic()
        latest = since + HELD_BACK_S
        for calls in self._calls:
            calls.may_end.clear()
        while (now := time.monotonic()) < latest and (begun or self._begun()):
            if begun != self._begun():
                begun, since = self._begun(), now
            elif now - since > QUIET_S:
                return
            await asyncio.sleep(0.02)

    def _begun(self) -> int:
        return sum(calls.begun for calls in self._calls)


def _credentials(settings: ServerSettings) -> Any:
    """The credentials for TLS; None without TLS."""
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
    try:
        # gRPC says of a bad one only that the port cannot be had.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.certificate_file, settings.private_key_file)
        if settings.client_ca_file is not None:
            context.load_verify_locations(settings.client_ca_file)
        pair = (settings.private_key_file.read_bytes(), settings.certificate_file.read_bytes())
        authority = settings.client_ca_file.read_bytes() if settings.client_ca_file else None
    except OSError as err:
        raise ServerError(
            f"certificate_file, private_key_file or client_ca_file cannot be read: {err}"
        ) from err
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)
