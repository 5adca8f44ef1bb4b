"""The inference API: `/ping`, `/predictions`, `/explanations`, KServe's v1 paths, and what TorchServe
keeps for older clients.

Requests come as bodies of any type, as forms with named parts, or as JSON; see `forms`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Coroutine, Iterable
from typing import Any
from urllib.parse import parse_qsl

from torchport.server.api.base import JSON_LINE, Api, Reply, Request
from torchport.server.api.forms import fields_of
from torchport.server.api.open_inference import OipApi
from torchport.server.api.openapi import inference_description, model_description
from torchport.server.api.tokens import Access, KeyKind
from torchport.server.api.tracing import Tracing
from torchport.server.dispatch.job import Job, Kind
from torchport.server.errors import (
    ApiError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    ResourceNotFound,
)
from torchport.server.http.message import header_lines
from torchport.server.models.registry import Registry
from torchport.server.models.statistics import RequestCounts, RouteStatistics
from torchport.server.settings.settings import ServerSettings
from torchport.server.wire import Answer, Field, Row

logger = logging.getLogger(__name__)

_METHODS = ("POST", "PUT", "GET", "OPTIONS")
_V1 = re.compile(r"(?P<model>[^:]+):(?P<verb>predict|explain)")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_OURS = (
    "content-length",
    "transfer-encoding",
    "connection",
    "x-request-id",
    "pragma",
    "cache-control",
    "expires",
)


_NOT_FOR_HANDLERS = frozenset([b"transfer-encoding", b"expect", b"describe"])
_EXPLAIN = {True: (b"explain", b"True"), False: (b"explain", b"False")}

_STREAMED = b"ts_stream_next: true\r\n"
"""What TorchServe's clients may look for in an answer that comes in pieces."""


class InferenceApi(Api):
    """Answers what clients of models ask."""

    key_kind = KeyKind.INFERENCE

    def __init__(
        self,
        settings: ServerSettings,
        access: Access,
        counts: RequestCounts,
        registry: Registry,
        tracing: Tracing | None = None,
    ) -> None:
        super().__init__(settings, access, counts)
        self.registry = registry
        self.draining = False
        """Set when the server ends: it says so to who asks for its health, and still answers."""
        self._oip = OipApi(self)
        self.tracing = tracing
        self._description = Reply.of_json(inference_description())

    def answer(self, request: Request) -> Reply | Coroutine[Any, Any, Reply] | None:
        segments = request.segments
        first = segments[0]
        if first in ("predictions", "explanations") and len(segments) >= 2:
            explain = first == "explanations"
            version, path = None, b""
            if len(segments) > 2:
                version, path = segments[2], "/".join(segments[3:]).encode("utf-8", "replace")
            more = (b"url_path", path), _EXPLAIN[explain]
            return self.predict(request, segments[1], version, explain=explain, more=more)
        if first == "ping":
            return self._ping()
        if first == "v2":
            return self._oip.answer(request)
        if segments == ("",):
            if request.method != "OPTIONS":
                raise MethodNotAllowed("OPTIONS")
            return self._description
        if segments == ("api-description",):
            return self._description
        if first == "v1":
            return self._kserve_v1(request, segments)
        if first == "invocations" and len(segments) == 1:
            return self.predict(request, self._only_model(request), None, with_query=True)
        if first == "models" and len(segments) == 3 and segments[2] == "invoke":
            return self.predict(request, segments[1], None, with_query=True)
        if len(segments) in (2, 3) and segments[-1] == "predict":
            version = segments[1] if len(segments) == 3 else None
            return self.predict(request, first, version, with_query=True)
        raise ResourceNotFound

    @property
    def is_ready(self) -> bool:
        """Whether every model can answer, and the server is not ending."""
        return not self.draining and self.registry.is_ready

    def _ping(self) -> Reply:
        if self.draining:
            return Reply.of_json({"status": "Unhealthy"}, 503)
        if self.registry.is_healthy:
            return Reply.of_json({"status": "Healthy"})
        return Reply.of_json({"status": "Unhealthy"}, 500)

    def _only_model(self, request: Request) -> str:
        name = request.query.get("model_name")
        if name:
            return name
        if len(self.registry.models) == 1:
            return next(iter(self.registry.models))
        for field in fields_of(request.http.body, request.content_type):
            if field.name == "model_name":
                return field.value.decode("utf-8", "replace")
        raise InvalidRequest("Parameter model_name is required.")

    def _kserve_v1(self, request: Request, segments: tuple[str, ...]) -> Reply | None:
        if len(segments) != 3 or segments[1] != "models":
            raise ResourceNotFound
        match = _V1.fullmatch(segments[2])
        if match is not None:
            explain = match["verb"] == "explain"
            return self.predict(request, match["model"], None, explain=explain, more=[_EXPLAIN[explain]])
        if ":" in segments[2]:
            raise ResourceNotFound
        request.allow("GET")
        version = self.registry.find(segments[2])
        return Reply.of_json({"name": segments[2], "ready": bool(version.pool.ready)})

    def predict(
        self,
        request: Request,
        name: str,
        number: str | None,
        *,
        explain: bool = False,
        more: Iterable[tuple[bytes, bytes]] = (),
        with_query: bool = False,
    ) -> Reply | None:
        """Ask a model.

        Args:
            more: headers that the handler is told beside the client's.
            with_query: whether the query's parameters are fields for the handler.
        """
        request.allow(*_METHODS)
        version = self.registry.find(name, number)
        if request.method == "OPTIONS":
            return Reply.of_json(model_description(version))
        version.require_room()
        fields = fields_of(request.http.body, request.content_type)
        if with_query:
            pairs = parse_qsl(request.http.query.decode("latin-1"), keep_blank_values=True)
            fields = [*(Field(key, "", bytearray(text.encode())) for key, text in pairs), *fields]
        route = self.registry.model(name).route(number)
        row = Row(request.id, [*headers_for_handlers(request), *more], fields)
        prediction = _Prediction(self, request, route)
        if self.tracing is not None:
            prediction.span = self.tracing.begin(request, version.model.name, version.model.version)
        # Where the server says nothing of it, handlers take the client's word: then this decides the batch.
        explain = explain or (with_query and request.http.by_name.get(b"explain") == b"True")
        kind = Kind.EXPLAIN if explain else Kind.PREDICT
        version.submit(kind, row, prediction, request.timeout())
        route.requests += 1
        return None

    def reply_of(self, answer: Answer) -> Reply:
        """A worker's answer as it goes to the client."""
        if answer.error:
            error = ApiError(answer.body.decode("utf-8", "replace"))
            error.http_status, error.kind = answer.status, answer.error
            return Reply.of_error(error)
        if len(answer.body) > self.settings.max_response_size:
            size = f"{len(answer.body)} bytes, max_response_size is {self.settings.max_response_size}"
            return Reply.of_error(InternalError(f"the model's answer is too large: {size}"))
        return Reply(_status(answer), answer.body, answer_lines(answer))


class _Prediction:
    """Waits for a worker's answer and sends it on."""

    __slots__ = ("_api", "_pieces", "_request", "_route", "_waiting_bytes", "span")

    def __init__(self, api: InferenceApi, request: Request, route: RouteStatistics) -> None:
        self._api, self._request, self._route = api, request, route
        self._pieces: asyncio.Queue[Answer | Exception | None] | None = None
        self._waiting_bytes = 0
        self.span: Any = None
        """The request's span, where spans are made."""

    @property
    def is_gone(self) -> bool:
        return self._request.http.responder.is_gone

    def answered(self, job: Job, answer: Answer) -> None:
        route, now = self._route, time.monotonic()
        route.inference_us += (now - job.enqueued) * 1e6
        queue_s = job.started - job.enqueued
        route.queue_us += queue_s * 1e6
        self._api.counts.queue_ms = queue_s * 1e3
        if self._pieces is None:
            self._send(job, self._api.reply_of(answer))
            return
        self._end_span(job, answer.status)
        self._pieces.put_nowait(answer)
        self._pieces.put_nowait(None)

    def _send(self, job: Job, reply: Reply) -> None:
        self._api.send(self._request, reply)
        self._end_span(job, reply.status)

    def _end_span(self, job: Job, status: int) -> None:
        if self.span is not None and self._api.tracing is not None:
            self._api.tracing.end(self.span, job, status)

    def streamed(self, job: Job, piece: Answer) -> None:
        if self._pieces is None:
            self._pieces = asyncio.Queue()
            self._api.in_background(self._stream(self._pieces))
        self._pieces.put_nowait(piece)
        self._waiting_bytes += len(piece.body)
        if self._waiting_bytes > self._api.settings.max_response_size:
            # The client takes the pieces slower than they come: they must not fill the memory.
            self._request.http.responder.abort()

    def failed(self, job: Job, error: Exception) -> None:
        if self._pieces is None:
            self._send(job, self._api.reply_to(self._request, error))
            return
        self._end_span(job, 500)
        self._pieces.put_nowait(error)

    async def _stream(self, pieces: asyncio.Queue[Answer | Exception | None]) -> None:
        """Send pieces as they come."""
        request, responder = self._request, self._request.http.responder
        started = False
        while (piece := await pieces.get()) is not None:
            if isinstance(piece, Exception) or piece.error:
                # A proper end would say that this was all: the client is to see that it was not.
                logger.error("request %s: the stream is cut off: %s", request.id, piece)
                responder.abort()
                return
            if not started:
                started = True
                lines = self._api.all_lines(request, answer_lines(piece) + _STREAMED)
                await responder.start_chunks(_status(piece), lines)
                self._api.sent(request, _status(piece))
            await responder.send_chunk(piece.body)
            self._waiting_bytes -= len(piece.body)
        responder.end_chunks()


def headers_for_handlers(request: Request) -> list[tuple[bytes, bytes]]:
    """The client's headers. The body has come whole: it has a length, and no encoding of its transfer.

    `describe` is a word of the server's: handlers look for it in a batch's first row.
    """
    headers, by_name = request.http.headers, request.http.by_name
    if not _NOT_FOR_HANDLERS.isdisjoint(by_name):
        headers = [pair for pair in headers if pair[0].lower() not in _NOT_FOR_HANDLERS]
    if b"content-length" not in by_name:
        headers = [*headers, (b"content-length", b"%d" % len(request.http.body))]
    return headers


def _status(answer: Answer) -> int:
    return answer.status if 200 <= answer.status <= 599 else 500


def answer_lines(answer: Answer) -> bytes:
    """The handler's headers, without those that the server writes and those that HTTP cannot carry."""
    if not answer.headers and answer.content_type == "application/json":
        return JSON_LINE
    found: dict[bytes, bytes] = {}
    if answer.content_type:
        found[b"content-type"] = answer.content_type.encode("latin-1", "replace")
    for name, value in answer.headers:
        if _HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value) and name.lower() not in _OURS:
            found[name.lower().encode()] = value.encode("latin-1")
    return header_lines(found.items())
