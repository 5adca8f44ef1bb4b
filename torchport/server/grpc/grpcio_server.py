"""A gRPC server on one address, by grpcio: for clients with which the server's own has trouble.

server = GrpcioServer(methods, settings, calls)
await server.listen("127.0.0.1", 7070)
await server.stop(20.0)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio

from torchport.server.grpc.calls import Calls, Metadata, Method
from torchport.server.grpc.status import StatusCode
from torchport.server.settings.address import Address
from torchport.server.settings.settings import ServerSettings

QUIET_S = 0.3
"""Seconds without a new call after which the clients of an ending server are taken to wait for answers."""

HELD_BACK_S = 3.0
"""Maximum seconds for which answers are held back when the server ends."""

_FRAMING = 1 << 16
"""Maximum bytes of a message beyond the answer in it; gRPC refuses larger messages."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class _Context:
    """A call as grpcio has it."""

    __slots__ = ("_context", "metadata")

    def __init__(self, context: Any) -> None:
        self._context = context
        self.metadata = [
            (name.encode("latin-1"), value if isinstance(value, bytes) else value.encode("latin-1"))
            for name, value in context.invocation_metadata() or ()
        ]

    def time_remaining(self) -> float | None:
        remaining = self._context.time_remaining()
        return None if remaining is None else float(remaining)

    def peer(self) -> str:
        return str(self._context.peer())

    def set_trailing_metadata(self, pairs: Metadata) -> None:
        self._context.set_trailing_metadata(pairs)

    async def abort(self, code: StatusCode, details: str, metadata: Metadata) -> NoReturn:
        await self._context.abort(_CODES[int(code)], details, metadata)
        raise AssertionError("grpcio has raised")


def _handler(method: Method) -> Any:
    if method.gives_many:

        async def stream(given: Any, context: Any) -> AsyncGenerator[bytes, None]:
            async with contextlib.aclosing(method.answer(given, _Context(context))) as messages:
                async for message in messages:
                    yield b"".join(message)

        if method.takes_many:
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.unary_stream_rpc_method_handler(stream)

    async def answer(data: bytes, context: Any) -> bytes:
        return b"".join(await method.answer(data, _Context(context)))

    return grpc.unary_unary_rpc_method_handler(answer)


class GrpcioServer:
    """One listening address. `calls` are held back when the server ends."""

    def __init__(self, methods: Iterable[Method], settings: ServerSettings, calls: Sequence[Calls]) -> None:
        self._calls = calls
        self._secure = settings.enable_grpc_ssl
        self._settings = settings
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=settings.max_connections,
            options=[
                ("grpc.max_receive_message_length", settings.max_request_size),
                ("grpc.max_send_message_length", settings.max_response_size + _FRAMING),
                # Another server's port is not to be shared with it by accident.
                ("grpc.so_reuseport", 0),
            ],
        )
        services = defaultdict[str, dict[str, Any]](dict)
        for method in methods:
            _, service, name = method.path.split("/")
            services[service][name] = _handler(method)
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(name, handlers) for name, handlers in services.items()]
        )

    async def listen(self, host: str, port: int) -> int:
        """Listen on the address; its port.

        Raises:
            OSError: the address is taken or does not exist.
        """
        endpoint = Address("http", host, port).endpoint
        try:
            if self._secure:
                found = self._server.add_secure_port(endpoint, _credentials(self._settings))
            else:
                found = self._server.add_insecure_port(endpoint)
        except RuntimeError as err:
            raise OSError(str(err)) from err
        await self._server.start()
        return int(found)

    async def stop(self, grace: float) -> None:
        """Refuse new calls, answer those at hand within `grace` seconds, close."""
        await self._hold_back()
        stopping = asyncio.ensure_future(self._server.stop(grace))
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
    """The credentials for TLS, whose files have been found good."""
    assert settings.private_key_file is not None
    assert settings.certificate_file is not None
    pair = (settings.private_key_file.read_bytes(), settings.certificate_file.read_bytes())
    authority = settings.client_ca_file.read_bytes() if settings.client_ca_file else None
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)
