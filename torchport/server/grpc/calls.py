"""Shared parts of the gRPC services: keys, errors, counts, access log.

    calls = Calls(access, KeyKind.INFERENCE, counts, access_log=False)
    handler = calls.service("a.package.AService", unary={"Ping": (inference.Empty, ping)})

A method takes a message and a `Call`, and gives one message or several. It raises `ApiError` as the HTTP
APIs do. The error becomes a gRPC status by TorchServe's table.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from torchport.server.api.base import access_logger, new_request_id
from torchport.server.api.tokens import Access, KeyKind
from torchport.server.errors import ApiError, InternalError, InvalidKey, InvalidRequest, ServiceUnavailable
from torchport.server.grpc.reading import require_few_fields
from torchport.server.http.body_memory import UNCOUNTED, BodyMemory
from torchport.server.http.parsing import INLINE_BYTES, in_parsing_thread
from torchport.server.logs import current_request
from torchport.server.models.statistics import RequestCounts

logger = logging.getLogger(__name__)

MAX_DETAILS = 2000
"""Maximum length of a status message in bytes; longer ones are shortened. It is sent among the headers, of
which clients accept 8 KiB."""

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    416: grpc.StatusCode.OUT_OF_RANGE,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def code_of(error: ApiError) -> grpc.StatusCode:
    """The gRPC status of an error, by TorchServe's table.

    Unlike there, a missing or wrong key is UNAUTHENTICATED.
    """
    if isinstance(error, InvalidKey):
        return grpc.StatusCode.UNAUTHENTICATED
    status = error.http_status
    other = grpc.StatusCode.FAILED_PRECONDITION if 400 <= status < 500 else grpc.StatusCode.INTERNAL
    return _CODES.get(status, other)


class Call:
    """One gRPC call; `metadata` is what HTTP has in headers."""

    __slots__ = ("context", "id", "metadata")

    def __init__(self, context: Any) -> None:
        self.context = context
        self.id = new_request_id()
        self.metadata = [
            (name.encode("latin-1"), value if isinstance(value, bytes) else value.encode("latin-1"))
            for name, value in context.invocation_metadata() or ()
        ]

    def header(self, name: bytes) -> bytes | None:
        """The first value in the metadata by its lower-case name."""
        return next((value for key, value in self.metadata if key == name), None)

    def timeout(self) -> float | None:
        """Seconds until the client's deadline; None without one."""
        remaining = self.context.time_remaining()
        return None if remaining is None else max(float(remaining), 0.001)


Unary = tuple[Any, Callable[[Any, Call], Awaitable[Any]]]
Streaming = tuple[Any, Callable[[Any, Call], AsyncGenerator[Any, None]]]
BothWays = tuple[Any, Callable[[AsyncGenerator[Any, None], Call], AsyncGenerator[Any, None]]]
"""A request's message class, and the method that answers it."""


class Calls:
    """Makes gRPC services of methods.

    `kind` is the key that calls need if tokens are on; None if they need no key.
    """

    def __init__(
        self,
        access: Access,
        kind: KeyKind | None,
        counts: RequestCounts,
        *,
        memory: BodyMemory,
        access_log: bool,
    ) -> None:
        self._access, self._kind, self._counts, self._access_log = access, kind, counts, access_log
        self._memory = memory
        self.stopping = asyncio.Event()
        """Set when the server ends; streams that wait for their client end then."""
        self.begun = 0
        """Number of all calls so far."""
        self.may_end = asyncio.Event()
        """Cleared while the ends of calls are held back, so that clients begin no new ones."""
        self.may_end.set()

    def service(
        self,
        name: str,
        *,
        unary: Mapping[str, Unary] | None = None,
        streaming: Mapping[str, Streaming] | None = None,
        both_ways: Mapping[str, BothWays] | None = None,
    ) -> Any:
        """Make a service by its full name.

        `unary` methods give one answer, `streaming` ones several; `both_ways` ones also take several
        requests.
        """
        handlers = {}
        for method, (message, function) in (unary or {}).items():
            handler = self._unary(f"/{name}/{method}", message, function)
            handlers[method] = grpc.unary_unary_rpc_method_handler(handler)
        for method, (message, stream) in (streaming or {}).items():
            handler = self._streaming(f"/{name}/{method}", partial(_read, message), stream)
            handlers[method] = grpc.unary_stream_rpc_method_handler(handler)
        for method, (message, exchange) in (both_ways or {}).items():
            handler = self._streaming(f"/{name}/{method}", partial(self._requests, message), exchange)
            handlers[method] = grpc.stream_stream_rpc_method_handler(handler)
        return grpc.method_handlers_generic_handler(name, handlers)

    def _unary(self, path: str, message: Any, method: Callable[[Any, Call], Awaitable[Any]]) -> Any:
        async def answer(data: bytes, context: Any) -> bytes:
            async with self._answering(path, context) as call:
                with self._hold(data):
                    answered = await method(await _read(message, data), call)
                    return bytes(answered.SerializeToString())

        return answer

    def _streaming(
        self, path: str, read: Callable[[Any], Any], method: Callable[[Any, Call], AsyncGenerator[Any, None]]
    ) -> Any:
        async def answer(given: Any, context: Any) -> AsyncGenerator[bytes, None]:
            async with self._answering(path, context) as call:
                with self._hold(given if isinstance(given, bytes) else b""):
                    request = read(given)
                    if isinstance(request, Awaitable):
                        request = await request
                    async with contextlib.aclosing(method(request, call)) as pieces:
                        async for piece in pieces:
                            yield piece.SerializeToString()

        return answer

    def _hold(self, data: bytes) -> contextlib.AbstractContextManager[object]:
        """Count a large message in the memory of all bodies.

        Raises:
            ServiceUnavailable: they take too much already.
        """
        if len(data) <= UNCOUNTED:
            return contextlib.nullcontext()
        held = self._memory.hold(len(data))
        if held is None:
            raise ServiceUnavailable(
                "the messages of all requests take max_request_memory already: try again later"
            )
        return held

    async def _requests(self, message: Any, messages: AsyncIterator[bytes]) -> AsyncGenerator[Any, None]:
        """The client's messages, until it sends no more or the server ends."""
        stopping = asyncio.ensure_future(self.stopping.wait())
        try:
            while True:
                reading = asyncio.ensure_future(_next(messages))
                try:
                    await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    reading.cancel()
                if not reading.done():
                    raise ServiceUnavailable("the server is ending")
                data = reading.result()
                if data is None:
                    return
                with self._hold(data):
                    yield await _read(message, data)
        finally:
            stopping.cancel()

    @contextlib.asynccontextmanager
    async def _answering(self, path: str, context: Any) -> AsyncIterator[Call]:
        call, started = Call(context), time.perf_counter()
        current_request.set(call.id)
        # Asked now: once the client has cancelled the call, gRPC ends the process in answer to it.
        client = context.peer() if self._access_log else ""
        trailing = [("x-request-id", call.id)]
        context.set_trailing_metadata(tuple(trailing))
        code = grpc.StatusCode.CANCELLED
        error: ApiError | None = None
        self.begun += 1
        try:
            try:
                if self._kind is not None and self._access.enabled:
                    self._access.require(self._kind, call.header(b"authorization"))
                yield call
                await self.may_end.wait()
                code = grpc.StatusCode.OK
                self._counts.add(200)
            except ApiError as err:
                error = err
            except Exception:
                logger.exception("request %s: %s", call.id, path, extra={"request_ids": [call.id]})
                error = InternalError(f"the server failed; its log names request {call.id}")
            if error is not None:
                code = code_of(error)
                self._counts.add(error.http_status)
                trailing += [(name.lower(), value) for name, value in error.headers.items()]
                await self.may_end.wait()
                await context.abort(code, details_of(error), tuple(trailing))
        finally:
            # Its traceback leads back here: together they would keep the message until a garbage collection.
            error = None
            if self._access_log:
                self._log(call, client, path, code, time.perf_counter() - started)

    def _log(self, call: Call, client: str, path: str, code: grpc.StatusCode, seconds: float) -> None:
        milliseconds = seconds * 1000
        access_logger.info(
            '%s "gRPC %s" %s %.2f ms %s',
            client,
            path,
            code.name,
            milliseconds,
            call.id,
            extra={
                "request_id": call.id,
                "client": client,
                "method": "gRPC",
                "path": path,
                "status": code.name,
                "milliseconds": round(milliseconds, 3),
            },
        )


def details_of(error: ApiError) -> str:
    """An error's message, short enough for headers.

    A long message keeps its beginning and its end.
    """
    text = str(error)
    if len(text.encode("utf-8", "replace")) <= MAX_DETAILS:
        return text.encode("utf-8", "replace").decode()
    # Beyond ASCII a character may take twelve there.
    text = text.encode("ascii", "replace").decode()
    return f"{text[: MAX_DETAILS // 4]}\n...\n{text[-MAX_DETAILS * 3 // 4 :]}"


async def _read(message: Any, data: bytes) -> Any:
    """The message in these bytes; a large one is read in the parsing thread.

    Raises:
        InvalidRequest: they are no such message, or one of too many fields.
    """
    if len(data) <= INLINE_BYTES:
        return _parse(message, data)
    return await in_parsing_thread(_parse_large, message, data)


def _parse_large(message: Any, data: bytes) -> Any:
    require_few_fields(data, message.DESCRIPTOR)
    return _parse(message, data)


def _parse(message: Any, data: bytes) -> Any:
    try:
        return message.FromString(data)
    except DecodeError as err:
        raise InvalidRequest(f"the message is no {message.DESCRIPTOR.name}: {err}") from err


async def _next(messages: AsyncIterator[bytes]) -> bytes | None:
    return await anext(messages, None)
