"""Predictions by REST: puts a request into a version's queue, and sends its answer back.

predictions = Predictions(api, registry)
predictions.predict(request, "linear", None)         # the reply is sent when a worker has answered
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine, Iterable
from typing import Any
from urllib.parse import parse_qsl

from torchport.server.api.base import JSON_LINE, Api, Reply, Request
from torchport.server.api.forms import fields_of, is_long_to_read
from torchport.server.api.openapi import model_description
from torchport.server.api.tracing import Tracing
from torchport.server.dispatch.job import Job, Kind
from torchport.server.errors import AnswerTooLarge, ApiError
from torchport.server.http.message import header_lines
from torchport.server.http.parsing import in_parsing_thread
from torchport.server.models.registry import Registry
from torchport.server.wire import Answer, Field, Row

logger = logging.getLogger(__name__)

_METHODS = ("POST", "PUT", "GET", "OPTIONS")
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

_STREAMED = b"ts_stream_next: true\r\n"
"""Header of a streamed answer that TorchServe's clients may look for."""


class Predictions:
    """Queues an API's requests to models, and sends their answers."""

    def __init__(self, api: Api, registry: Registry, tracing: Tracing | None = None) -> None:
        self.api, self.tracing = api, tracing
        self._registry = registry

    def predict(
        self,
        request: Request,
        name: str,
        number: str | None,
        *,
        explain: bool = False,
        more: Iterable[tuple[bytes, bytes]] = (),
        with_query: bool = False,
    ) -> Reply | Coroutine[Any, Any, None] | None:
        """Queue a request to a model; a large form is read first, which the coroutine does.

        Args:
            more: headers for the handler, after the client's.
            with_query: whether the query's parameters are fields for the handler.
        """
        request.allow(*_METHODS)
        version = self._registry.find(name, number)
        if request.method == "OPTIONS":
            return Reply.of_json(model_description(version))
        version.require_room()
        body, content_type = request.http.body, request.content_type
        if is_long_to_read(body, content_type):

            async def read_and_submit() -> None:
                fields = await in_parsing_thread(fields_of, body, content_type)
                self._submit(request, name, number, fields, explain=explain, more=more, with_query=with_query)

            return read_and_submit()
        fields = fields_of(body, content_type)
        self._submit(request, name, number, fields, explain=explain, more=more, with_query=with_query)
        return None

    def _submit(
        self,
        request: Request,
        name: str,
        number: str | None,
        fields: list[Field],
        *,
        explain: bool,
        more: Iterable[tuple[bytes, bytes]],
        with_query: bool,
    ) -> None:
        # Looked for again: while the fields were read, another may have become the default.
        version = self._registry.find(name, number)
        if with_query:
            pairs = parse_qsl(request.http.query.decode("latin-1"), keep_blank_values=True)
            fields = [*(Field(key, "", bytearray(text.encode())) for key, text in pairs), *fields]
        route = self._registry.model(name).route(number)
        row = Row(request.id, [*headers_for_handlers(request), *more], fields)
        prediction = _Prediction(self, request)
        if self.tracing is not None:
            prediction.span = self.tracing.begin(request, version.model.name, version.model.version)
        # Where the server says nothing of it, handlers take the client's word: then this decides the batch.
        explain = explain or (with_query and request.http.by_name.get(b"explain") == b"True")
        kind = Kind.EXPLAIN if explain else Kind.PREDICT
        job = version.submit(kind, row, prediction, request.timeout(), route=route)
        request.http.left = job.leaver()

    def reply_of(self, request: Request, answer: Answer) -> Reply:
        """A worker's answer as a reply to the client."""
        if answer.error:
            return self.api.reply_to(request, ApiError.of(answer))
        limit = self.api.settings.max_response_size
        if len(answer.body) > limit:
            return self.api.reply_to(request, AnswerTooLarge(len(answer.body), limit))
        return Reply(answer.status, answer.body, answer_lines(answer))


class _Prediction:
    """Receives a worker's answer and sends it to the client."""

    __slots__ = ("_api", "_pieces", "_predictions", "_request", "_waiting_bytes", "span")

    def __init__(self, predictions: Predictions, request: Request) -> None:
        self._predictions, self._api, self._request = predictions, predictions.api, request
        self._pieces: asyncio.Queue[Answer | Exception | None] | None = None
        self._waiting_bytes = 0
        self.span: Any = None
        """The request's tracing span; None if tracing is off."""

    @property
    def is_gone(self) -> bool:
        return self._request.http.responder.is_gone

    def answered(self, job: Job, answer: Answer) -> None:
        if self._pieces is None:
            self._send(job, self._predictions.reply_of(self._request, answer))
            return
        self._end_span(job, answer.status)
        self._pieces.put_nowait(answer)
        self._pieces.put_nowait(None)

    def _send(self, job: Job, reply: Reply) -> None:
        self._api.send(self._request, reply)
        self._end_span(job, reply.status)

    def _end_span(self, job: Job, status: int) -> None:
        if self.span is not None and self._predictions.tracing is not None:
            self._predictions.tracing.end(self.span, job, status)

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
        """Send pieces as they arrive."""
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
                await responder.start_chunks(piece.status, lines)
                self._api.sent(request, piece.status)
            await responder.send_chunk(piece.body)
            self._waiting_bytes -= len(piece.body)
        responder.end_chunks()


def headers_for_handlers(request: Request) -> list[tuple[bytes, bytes]]:
    """The client's headers as handlers get them.

    The body is complete: it has a length, and no transfer encoding. `describe` is a word between the server
    and handlers, which look for it in a batch's first row.
    """
    headers, by_name = request.http.headers, request.http.by_name
    if not _NOT_FOR_HANDLERS.isdisjoint(by_name):
        headers = [pair for pair in headers if pair[0].lower() not in _NOT_FOR_HANDLERS]
    if b"content-length" not in by_name:
        headers = [*headers, (b"content-length", b"%d" % len(request.http.body))]
    return headers


def answer_lines(answer: Answer) -> bytes:
    """The handler's headers, without those that the server writes or that HTTP cannot carry."""
    if not answer.headers and answer.content_type == "application/json":
        return JSON_LINE
    found: dict[bytes, bytes] = {}
    if answer.content_type:
        found[b"content-type"] = answer.content_type.encode("latin-1", "replace")
    for name, value in answer.headers:
        if _HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value) and name.lower() not in _OURS:
            found[name.lower().encode()] = value.encode("latin-1")
    return header_lines(found.items())
