"""What the APIs share: request ids, tokens, errors as answers, counts, the access log.

A subclass answers at once, later, or by itself:

    def answer(self, request: Request) -> Reply | Coroutine[Any, Any, Reply] | None: ...
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import time
from collections.abc import Coroutine, Iterable
from typing import Any
from urllib.parse import parse_qsl, unquote

from torchport.server.access import Access, KeyKind
from torchport.server.errors import ApiError, InternalError, InvalidRequest, MethodNotAllowed
from torchport.server.http_message import HttpRequest
from torchport.server.settings import ServerSettings

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("torchport.access")

JSON_TYPE = (b"content-type", b"application/json")

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_random = random.Random()


def new_request_id() -> str:
    """A version 4 UUID, from a generator that need not be secret."""
    digits = f"{_random.getrandbits(128) & ~(0xF << 76) & ~(0x3 << 62) | (4 << 76) | (2 << 62):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class Reply:
    """A whole answer."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.status, self.body, self.headers = status, body, headers

    @classmethod
    def of_json(cls, value: Any, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> Reply:
        """JSON, indented as TorchServe's is."""
        body = json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        return cls(status, body, [JSON_TYPE, *headers])

    @classmethod
    def of_error(cls, error: ApiError) -> Reply:
        """An error in TorchServe's shape."""
        more = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
        # Written out: a server that refuses many requests has no time for an encoder that indents.
        kind, message = json.dumps(error.kind), json.dumps(str(error), ensure_ascii=False)
        text = f'{{\n  "code": {error.http_status},\n  "type": {kind},\n  "message": {message}\n}}\n'
        return cls(error.http_status, text.encode("utf-8", "replace"), [JSON_TYPE, *more])


class Request:
    """One request. `segments` are the parts of the path, decoded, without the leading slash."""

    __slots__ = ("_query", "http", "id", "method", "segments", "started", "status")

    def __init__(self, http: HttpRequest) -> None:
        self.http, self.method = http, http.method
        self.started = time.perf_counter()
        path = http.path.decode("latin-1")
        self.segments = path.split("/")[1:]
        if "%" in path:
            self.segments = [unquote(segment) for segment in self.segments]
        self.status = 0
        self._query: dict[str, str] | None = None
        given = http.header(b"x-request-id")
        known = given is not None and _REQUEST_ID.fullmatch(given)
        self.id = given.decode("ascii") if given is not None and known else new_request_id()

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters; of one that comes twice, the first."""
        if self._query is None:
            pairs = parse_qsl(self.http.query.decode("latin-1"), keep_blank_values=True)
            self._query = dict(reversed(pairs))
        return self._query

    @property
    def content_type(self) -> str:
        return (self.http.header(b"content-type") or b"").decode("latin-1")

    def integer(self, name: str) -> int | None:
        """A whole number of the query; None where there is none.

        Raises:
            InvalidRequest: it is none that can be read.
        """
        text = self.query.get(name)
        if text is None:
            return None
        if not re.fullmatch(r"-?[0-9]{1,9}", text):
            raise InvalidRequest(f"{name}={text[:40]!r}: a whole number is expected")
        return int(text)

    def boolean(self, name: str, default: bool) -> bool:
        """Whether the query says `true`; anything else is false, as on TorchServe."""
        text = self.query.get(name)
        return default if text is None else text.lower() == "true"

    def allow(self, *methods: str) -> None:
        """Raise `MethodNotAllowed` for any other method."""
        if self.method not in methods:
            raise MethodNotAllowed(*methods)

    def timeout(self) -> float | None:
        """Seconds that the client gives for an answer, by its `X-Request-Timeout-Ms`.

        Raises:
            InvalidRequest: it is no whole number above 0.
        """
        text = self.http.header(b"x-request-timeout-ms")
        if text is None:
            return None
        if not re.fullmatch(rb"[1-9][0-9]{0,8}", text):
            raise InvalidRequest("X-Request-Timeout-Ms: a whole number of milliseconds above 0 is expected")
        return int(text) / 1000


class RequestCounts:
    """Answers by the class of their status, over all APIs; and how long the last prediction waited."""

    __slots__ = ("client_errors", "ok", "queue_ms", "server_errors")

    def __init__(self) -> None:
        self.ok = self.client_errors = self.server_errors = 0
        self.queue_ms = 0.0

    def add(self, status: int) -> None:
        if status < 400:
            self.ok += 1
        elif status < 500:
            self.client_errors += 1
        else:
            self.server_errors += 1


class Api:
    """One of the server's HTTP APIs; called with each request."""

    key_kind: KeyKind | None = None
    """The key that requests need where tokens are on; None where `answer` sees to that."""

    def __init__(self, settings: ServerSettings, access: Access, counts: RequestCounts) -> None:
        self.settings, self.counts = settings, counts
        self._access = access
        pairs = (
            (b"access-control-allow-origin", settings.cors_allowed_origin),
            (b"access-control-allow-methods", settings.cors_allowed_methods),
            (b"access-control-allow-headers", settings.cors_allowed_headers),
        )
        self._cors = [(name, text.encode("latin-1")) for name, text in pairs if text]
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(self, request: Request) -> Reply | Coroutine[Any, Any, Reply] | None:
        """Answer one request, or see to it that `send` is called."""
        raise NotImplementedError

    def __call__(self, http: HttpRequest) -> None:
        request = Request(http)
        try:
            if self._access.enabled and self.key_kind is not None:
                self._access.require(self.key_kind, http.header(b"authorization"))
            reply = self.answer(request)
        except Exception as err:
            reply = self.reply_to(request, err)
        if reply is None:
            return
        if isinstance(reply, Reply):
            self.send(request, reply)
        else:
            self.in_background(self._answer_later(request, reply))

    def in_background(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run it to its end beside everything else."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_later(self, request: Request, coroutine: Coroutine[Any, Any, Reply]) -> None:
        try:
            reply = await coroutine
        except Exception as err:
            reply = self.reply_to(request, err)
        self.send(request, reply)

    def reply_to(self, request: Request, error: Exception) -> Reply:
        """What a client gets of an error: what it is to know of ours, the request's id of any other."""
        if isinstance(error, ApiError):
            return Reply.of_error(error)
        path = request.http.path.decode("latin-1")
        logger.error("request %s: %s %s", request.id, request.method, path, exc_info=error)
        return Reply.of_error(InternalError(f"the server failed; its log names request {request.id}"))

    def send(self, request: Request, reply: Reply) -> None:
        """Send an answer, count it, and log it where that is asked for."""
        headers = [*reply.headers, *self.common_headers(request, reply.headers)]
        request.http.connection.respond(reply.status, headers, reply.body)
        self.sent(request, reply.status)

    def common_headers(
        self, request: Request, others: Iterable[tuple[bytes, bytes]]
    ) -> list[tuple[bytes, bytes]]:
        """What every answer is to have among its headers, but for what `others` have already."""
        common = [(b"x-request-id", request.id.encode())]
        if self._cors:
            said = {name for name, _ in others}
            common += [pair for pair in self._cors if pair[0] not in said]
        return common

    def sent(self, request: Request, status: int) -> None:
        """Count an answer, and log it where that is asked for."""
        self.counts.add(status)
        if self.settings.access_log:
            self._log(request, status)

    def _log(self, request: Request, status: int) -> None:
        path = request.http.path.decode("latin-1")
        milliseconds = (time.perf_counter() - request.started) * 1000
        trace = request.http.header(b"traceparent")
        access_logger.info(
            '%s "%s %s" %d %.2f ms %s',
            request.http.connection.client,
            request.method,
            path,
            status,
            milliseconds,
            request.id,
            extra={
                "request_id": request.id,
                "client": request.http.connection.client,
                "method": request.method,
                "path": path,
                "status": status,
                "milliseconds": round(milliseconds, 3),
                "traceparent": trace.decode("latin-1") if trace else None,
            },
        )
