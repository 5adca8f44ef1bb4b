"""Shared parts of the gRPC services: keys, errors, counts, access log.

    calls = Calls(access, KeyKind.INFERENCE, counts, memory=memory, access_log=False)
    methods = calls.service("a.package.AService", unary={"Ping": (inference.Empty, ping)})

A method takes a message and a `Call`, and gives one message or several. It raises `ApiError` as the HTTP
APIs do. The error becomes a gRPC status by TorchServe's table.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, Protocol

from google.protobuf.message import DecodeError

from torchport.server.api.base import access_logger, new_request_id
from torchport.server.api.tokens import Access, KeyKind
from torchport.server.errors import ApiError, InternalError, InvalidRequest, ServiceUnavailable
from torchport.server.grpc.messages import inference, open_inference_read
from torchport.server.grpc.reading import Data, require_few_fields, without_field
from torchport.server.grpc.status import StatusCode, code_of
from torchport.server.http.body_memory import UNCOUNTED, BodyMemory
from torchport.server.http.parsing import INLINE_BYTES, in_parsing_thread
from torchport.server.logs import current_request
from torchport.server.models.statistics import RequestCounts

logger = logging.getLogger(__name__)

MAX_DETAILS = 2000
"""Maximum length of a status message in bytes; longer ones are shortened. It is sent among the headers, of
which clients accept 8 KiB."""

Pieces = Sequence[Data]
"""A message to send, which need not be joined."""

Room = Callable[[int, memoryview], memoryview | None]
"""Gives memory for a large message, by its size and its first bytes; None if any will do."""

Metadata = tuple[tuple[str, str], ...]


class Context(Protocol):
    """A call, as the server that took it has it."""

    @property
    def metadata(self) -> list[tuple[bytes, bytes]]:
        """What HTTP has in headers."""

    def time_remaining(self) -> float | None:
        """Seconds until the client's deadline; None without one."""

    def peer(self) -> str:
        """The client's address."""

    def set_trailing_metadata(self, pairs: Metadata, /) -> None:
        """Set what is sent with the status."""

    async def abort(self, code: StatusCode, details: str, metadata: Metadata) -> NoReturn:
        """End the call with a status that is not OK."""


LARGE_FIELDS = {
    inference.PredictionsRequest: 3,
    open_inference_read.ModelInferRequest: 7,
}
"""Number of the field that makes a message large: protobuf would copy it, and the answer's maker again."""


class Call:
    """One gRPC call; `metadata` is what HTTP has in headers."""

    __slots__ = ("context", "id", "large", "metadata")

    def __init__(self, context: Context) -> None:
        self.context = context
        self.id = new_request_id()
        self.metadata = context.metadata
        self.large: list[memoryview] | None = None
        """The values of the field in `LARGE_FIELDS`, if these were left out of the request."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One method of a service, as bytes.

    `answer` takes a message, or many if `takes_many`, and the context. It gives a message in pieces, or many
    such if `gives_many`. `room` gives memory for a large message.
    """

    path: str
    answer: Callable[[Any, Context], Any]
    takes_many: bool = False
    gives_many: bool = False
    room: Room | None = None


class Calls:
    """Makes gRPC services of methods.

    `kind` is the key that calls need if tokens are on; None if they need no key. `memory` is None if the
    server counts messages as they come. `room` gives memory for messages, by the number of their large field.
    """

    def __init__(
        self,
        access: Access,
        kind: KeyKind | None,
        counts: RequestCounts,
        *,
        memory: BodyMemory | None,
        access_log: bool,
        room: Callable[[int], Room] | None = None,
    ) -> None:
        self._access, self._kind, self._counts, self._access_log = access, kind, counts, access_log
        self._memory, self._room = memory, room
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
    ) -> list[Method]:
        """The methods of a service by its full name.

        `unary` methods give one answer, `streaming` ones several; `both_ways` ones also take several
        requests.
        """
        methods = []
        for name_of, (message, function) in (unary or {}).items():
            path = f"/{name}/{name_of}"
            answer = self._unary(path, message, function)
            methods.append(Method(path=path, answer=answer, room=self._room_of(message)))
        for name_of, (message, stream) in (streaming or {}).items():
            path = f"/{name}/{name_of}"
            answer = self._streaming(path, partial(_read, message), stream)
            methods.append(Method(path=path, answer=answer, gives_many=True, room=self._room_of(message)))
        for name_of, (message, exchange) in (both_ways or {}).items():
            path = f"/{name}/{name_of}"
            answer = self._streaming(path, partial(self._requests, message), exchange)
            methods.append(Method(path=path, answer=answer, takes_many=True, gives_many=True))
        return methods

    def _room_of(self, message: Any) -> Room | None:
        """Where messages of this class go that are large; None if it has no large field."""
        number = LARGE_FIELDS.get(message)
        return None if self._room is None or number is None else self._room(number)

    def _unary(self, path: str, message: Any, method: Callable[[Any, Call], Awaitable[Any]]) -> Any:
        async def answer(data: Data, context: Context) -> Pieces:
            async with self._answering(path, context) as call:
                with self._hold(data):
                    return _pieces(await method(await _read(message, data, call), call))

        return answer

    def _streaming(
        self,
        path: str,
        read: Callable[[Any, Call], Any],
        method: Callable[[Any, Call], AsyncGenerator[Any, None]],
    ) -> Any:
        async def answer(given: Any, context: Context) -> AsyncGenerator[Pieces, None]:
            async with self._answering(path, context) as call:
                with self._hold(given if isinstance(given, Data) else b""):
                    request = read(given, call)
                    if isinstance(request, Awaitable):
                        request = await request
                    async with contextlib.aclosing(method(request, call)) as messages:
                        async for message in messages:
                            yield _pieces(message)

        return answer

    def _hold(self, data: Data) -> contextlib.AbstractContextManager[object]:
        """Count a large message in the memory of all bodies, unless it was counted as it came.

        Raises:
            ServiceUnavailable: they take too much already.
        """
        if self._memory is None or len(data) <= UNCOUNTED:
            return contextlib.nullcontext()
        held = self._memory.hold(len(data))
        if held is None:
            raise ServiceUnavailable(
                "the messages of all requests take max_request_memory already: try again later"
            )
        return held

    async def _requests(
        self, message: Any, messages: AsyncIterator[Data], call: Call
    ) -> AsyncGenerator[Any, None]:
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
                    yield await _read(message, data, call)
        finally:
            stopping.cancel()

    @contextlib.asynccontextmanager
    async def _answering(self, path: str, context: Context) -> AsyncIterator[Call]:
        call, started = Call(context), time.perf_counter()
        current_request.set(call.id)
        # Asked now: once the client has cancelled the call, grpcio ends the process in answer to it.
        client = context.peer() if self._access_log else ""
        trailing = [("x-request-id", call.id)]
        context.set_trailing_metadata(tuple(trailing))
        code = StatusCode.CANCELLED
        error: ApiError | None = None
        self.begun += 1
        try:
            try:
                if self._kind is not None and self._access.enabled:
                    self._access.require(self._kind, call.header(b"authorization"))
                yield call
                await self.may_end.wait()
                code = StatusCode.OK
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

    def _log(self, call: Call, client: str, path: str, code: StatusCode, seconds: float) -> None:
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


def _pieces(answer: Any) -> Pieces:
    """A message in pieces; an answer may come as such."""
    return answer if isinstance(answer, list) else [answer.SerializeToString()]


async def _read(message: Any, data: Data, call: Call) -> Any:
    """The message in these bytes, without its large field. What is large then is read in the parsing thread.

    Raises:
        InvalidRequest: they are no such message, or one of too many fields.
    """
    call.large = None
    number = LARGE_FIELDS.get(message)
    if number is not None and len(data) > INLINE_BYTES:
        found = without_field(memoryview(data), number)
        if found is not None and len(found[0]) <= INLINE_BYTES:
            data, call.large = found
    if len(data) <= INLINE_BYTES:
        return _parse(message, data)
    return await in_parsing_thread(_parse_large, message, data)


def _parse_large(message: Any, data: Data) -> Any:
    require_few_fields(data, message.DESCRIPTOR)
    return _parse(message, data)


def _parse(message: Any, data: Data) -> Any:
    try:
        return message.FromString(data)
    except DecodeError as err:
        raise InvalidRequest(f"the message is no {message.DESCRIPTOR.name}: {err}") from err


async def _next(messages: AsyncIterator[Data]) -> Data | None:
    async for data in messages:
        return data
    return None
