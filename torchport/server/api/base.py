"""The part that all HTTP APIs share: request ids, tokens, errors as answers, counts, the access log.

A subclass answers at once, later, or calls `send` itself:

    def answer(self, request: Request) -> Reply | Coroutine[Any, Any, Reply] | None: ...
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Coroutine, Iterable, Mapping
from functools import cached_property, lru_cache
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, unquote

from torchport.server.api.tokens import Access, KeyKind
from torchport.server.errors import ApiError, InternalError, InvalidRequest, MethodNotAllowed
from torchport.server.http.compressing import (
    VARY_LINE,
    compressed,
    compressed_at_once,
    encoding_for,
    is_long_to_compress,
    may_vary,
)
from torchport.server.http.decompressing import HEADER, decompress
from torchport.server.http.message import KNOWN_METHODS, HttpRequest, header_lines, is_open_inference
from torchport.server.logs import current_request
from torchport.server.models.statistics import RequestCounts
from torchport.server.settings.settings import ServerSettings

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("torchport.access")

JSON_LINE = b"content-type: application/json\r\n"

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_LONG_PATH = 256


def _id_prefix() -> str:
    digits = secrets.token_hex(10)
    return f"{digits[:8]}-{digits[8:12]}-4{digits[12:15]}-a{digits[15:18]}"


_prefix, _numbers = _id_prefix(), count(secrets.randbelow(1 << 40))


def new_request_id() -> str:
    """A UUID of this server with a number that is counted up: an id need not be secret."""
    return f"{_prefix}-{next(_numbers):012x}"


def json_body(value: Any) -> bytes:
    """A value as JSON, indented as TorchServe's is."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


class Reply:
    """A complete answer. `lines` are headers as `header_lines` makes them."""

    __slots__ = ("body", "lines", "status")

    def __init__(self, status: int, body: bytes, lines: bytes = JSON_LINE) -> None:
        self.status, self.body, self.lines = status, body, lines

    @classmethod
    def of_json(cls, value: Any, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> Reply:
        """An answer in JSON."""
        return cls(status, json_body(value), JSON_LINE + header_lines(headers))

    @classmethod
    def of_error(cls, error: ApiError, path: bytes = b"") -> Reply:
        """An error in the form of TorchServe's; on paths of the Open Inference Protocol in the protocol's."""
        message, kind = str(error), "" if is_open_inference(path) else error.kind
        make = _usual_error if len(message) <= _USUAL_MESSAGE else _error
        return cls(*make(error.http_status, kind, message, tuple(error.headers.items())))


def _error(
    status: int, kind: str, message: str, headers: tuple[tuple[str, str], ...]
) -> tuple[int, bytes, bytes]:
    body = json_body({"code": status, "type": kind, "message": message} if kind else {"error": message})
    lines = header_lines((name.lower().encode(), text.encode()) for name, text in headers)
    return status, body, JSON_LINE + lines


def _encoded(reply: Reply, encoding: str, body: bytes) -> Reply:
    """The reply with this body, if that is smaller."""
    if len(body) >= len(reply.body):
        return reply
    return Reply(reply.status, body, b"%bcontent-encoding: %b\r\n" % (reply.lines, encoding.encode()))


# A server that refuses many requests says the same to all of them. Long messages are not worth the memory.
_usual_error = lru_cache(maxsize=64)(_error)
_USUAL_MESSAGE = 1000


class Request:
    """One HTTP request. `segments` are the decoded parts of its path.

    Empty parts at the end are left out: `/ping/` is `/ping`. `/` is one empty part.
    """

    __slots__ = ("_query", "http", "id", "method", "segments", "started")

    def __init__(self, http: HttpRequest) -> None:
        # HEAD asks what GET does; the connection sends no body.
        self.http, self.method = http, "GET" if http.method == "HEAD" else http.method
        self.started = time.perf_counter()
        self.segments = _segments(http.path) if len(http.path) < _LONG_PATH else _split(http.path)
        self._query: dict[str, str] | None = None
        given = http.by_name.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            self.id = given.decode("ascii")
        else:
            self.id = new_request_id()

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters. Of a repeated one, the first value counts."""
        if self._query is None:
            pairs = parse_qsl(self.http.query.decode("latin-1"), keep_blank_values=True)
            self._query = dict(reversed(pairs))
        return self._query

    @property
    def content_type(self) -> str:
        return self.http.content_type

    def integer(self, name: str) -> int | None:
        """A whole number of the query; None if it is missing or empty.

        Raises:
            InvalidRequest: it is no whole number, or has more than nine digits.
        """
        text = self.query.get(name)
        if not text:
            return None
        if not re.fullmatch(r"-?[0-9]{1,9}", text):
            raise InvalidRequest(f"{name}={text[:40]!r}: a whole number is expected")
        return int(text)

    def boolean(self, name: str, default: bool) -> bool:
        """Whether the query says `true`. Any other value is false, as on TorchServe."""
        text = self.query.get(name)
        return default if text is None else text.lower() == "true"

    def allow(self, *methods: str) -> None:
        """Raise `MethodNotAllowed` for any other method."""
        if self.method not in methods:
            raise MethodNotAllowed(*methods)

    def timeout(self) -> float | None:
        """Seconds that the client waits for the answer: its `X-Request-Timeout-Ms`.

        Raises:
            InvalidRequest: it is no whole number above 0.
        """
        text = self.http.by_name.get(b"x-request-timeout-ms")
        if text is None:
            return None
        if not re.fullmatch(rb"[1-9][0-9]{0,8}", text):
            raise InvalidRequest("X-Request-Timeout-Ms: a whole number of milliseconds above 0 is expected")
        return int(text) / 1000


def _split(path: bytes) -> tuple[str, ...]:
    segments = [unquote(segment) for segment in path.decode("latin-1").split("/")[1:]] or [""]
    while len(segments) > 1 and not segments[-1]:
        segments.pop()
    return tuple(segments)


_segments = lru_cache(maxsize=256)(_split)


class Api:
    """One of the server's HTTP APIs; called with each request."""

    key_kind: KeyKind | None = None
    """The key that requests need if tokens are on; None if `require_key` says otherwise."""

    def __init__(
        self,
        settings: ServerSettings,
        access: Access,
        counts: RequestCounts,
        description: Mapping[str, Any],
    ) -> None:
        self.settings, self.counts = settings, counts
        self._access = access
        self._described = description
        pairs = (
            (b"access-control-allow-origin", settings.cors_allowed_origin),
            (b"access-control-allow-methods", settings.cors_allowed_methods),
            (b"access-control-allow-headers", settings.cors_allowed_headers),
        )
        self._cors = [(name, text.encode("latin-1")) for name, text in pairs if text]
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(self, request: Request) -> Reply | Coroutine[Any, Any, Reply | None] | None:
        """Answer one request, now or later: None says that `send` will be called."""
        raise NotImplementedError

    def require_key(self, request: Request) -> None:
        """Check the request's key, if tokens are on.

        Raises:
            InvalidKey: it is missing or wrong.
        """
        if self._access.enabled and self.key_kind is not None:
            self._access.require(self.key_kind, request.http.by_name.get(b"authorization"))

    def describe(self, request: Request) -> Reply | None:
        """The API's OpenAPI description, if the request asks for it; else None.

        Raises:
            MethodNotAllowed: any method but OPTIONS on `/`.
        """
        if request.segments == ("",):
            request.allow("OPTIONS")
            return self._description
        return self._description if request.segments == ("api-description",) else None

    @cached_property
    def _description(self) -> Reply:
        # Written when it is asked for: most servers never are, and all would start later by it.
        return Reply.of_json(self._described)

    def __call__(self, http: HttpRequest) -> None:
        request = Request(http)
        try:
            self.require_key(request)
            if http.method not in KNOWN_METHODS:
                raise MethodNotAllowed(*KNOWN_METHODS)
            is_encoded = HEADER in http.by_name and len(http.body) > 0
            reply = self._answer_decompressed(request) if is_encoded else self.answer(request)
        except Exception as err:
            reply = self.reply_to(request, err)
        if reply is None:
            return
        if isinstance(reply, Reply):
            self.send(request, reply)
        else:
            self.in_background(self._answer_later(request, reply))

    async def _answer_decompressed(self, request: Request) -> Reply | None:
        await decompress(request.http, self.settings.max_request_size)
        reply = self.answer(request)
        return await reply if isinstance(reply, Coroutine) else reply

    def in_background(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine to its end, without waiting for it."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_later(self, request: Request, coroutine: Coroutine[Any, Any, Reply | None]) -> None:
        current_request.set(request.id)
        try:
            reply = await coroutine
        except Exception as err:
            reply = self.reply_to(request, err)
        if reply is not None:
            self.send(request, reply)

    def reply_to(self, request: Request, error: Exception) -> Reply:
        """The reply to an error: an `ApiError` keeps its message, others become a 500.

        The 500 names the request's id, with which the log tells of the error.
        """
        if isinstance(error, ApiError):
            return Reply.of_error(error, request.http.path)
        path = request.http.path.decode("latin-1")
        logger.error(
            "request %s: %s %s",
            request.id,
            request.http.method,
            path,
            exc_info=error,
            extra={"request_ids": [request.id]},
        )
        told = InternalError(f"the server failed; its log names request {request.id}")
        return Reply.of_error(told, request.http.path)

    def send(self, request: Request, reply: Reply) -> None:
        """Send an answer, compressed if the client asks and it is worth it; count it, and log it."""
        if may_vary(reply.status, reply.lines, reply.body):
            encoding = encoding_for(request.http.by_name.get(b"accept-encoding"), reply.lines)
            plain = Reply(reply.status, reply.body, reply.lines + VARY_LINE)
            if not encoding:
                reply = plain
            elif is_long_to_compress(reply.body):
                self.in_background(self._send_compressed(request, plain, encoding))
                return
            else:
                reply = _encoded(plain, encoding, compressed_at_once(reply.body, encoding))
        self._send(request, reply)

    async def _send_compressed(self, request: Request, reply: Reply, encoding: str) -> None:
        try:
            reply = _encoded(reply, encoding, await compressed(reply.body, encoding))
        except Exception:
            # The answer is there all the same.
            logger.exception("request %s: the answer is sent as it is", request.id)
        self._send(request, reply)

    def _send(self, request: Request, reply: Reply) -> None:
        request.http.responder.respond(reply.status, self.all_lines(request, reply.lines), reply.body)
        self.sent(request, reply.status)

    def all_lines(self, request: Request, lines: bytes) -> bytes:
        """An answer's own headers and those of every answer."""
        if self._cors:
            said = {line.partition(b":")[0] for line in lines.split(b"\r\n")}
            lines += header_lines(pair for pair in self._cors if pair[0] not in said)
        # The id has no line break in it: it is ours, or held against _REQUEST_ID.
        return b"%bx-request-id: %b\r\n" % (lines, request.id.encode())

    def sent(self, request: Request, status: int) -> None:
        """Count an answer, and log it if `access_log` is on."""
        self.counts.add(status)
        if self.settings.access_log:
            self._log(request, status)

    def room_for(self, request: HttpRequest, length: int) -> memoryview | None:
        """Memory for a large body that a model's workers share; None: any will do."""
        return None

    def refused(self, status: int) -> None:
        """Count an answer to what was no request that an API could take."""
        self.counts.add(status)

    def _log(self, request: Request, status: int) -> None:
        path = request.http.path.decode("latin-1")
        milliseconds = (time.perf_counter() - request.started) * 1000
        trace = request.http.by_name.get(b"traceparent")
        access_logger.info(
            '%s "%s %s" %d %.2f ms %s',
            request.http.responder.client,
            request.http.method,
            path,
            status,
            milliseconds,
            request.id,
            extra={
                "request_id": request.id,
                "client": request.http.responder.client,
                "method": request.http.method,
                "path": path,
                "status": status,
                "milliseconds": round(milliseconds, 3),
                "traceparent": trace.decode("latin-1") if trace else None,
            },
        )
