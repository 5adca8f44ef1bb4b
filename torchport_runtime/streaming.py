"""Streamed answers: live rows, which join and leave a handler's steps.

    rows = LiveRows(handler)
    rows.join("a", {"body": b"Once"}, {"accept": "text/event-stream"})
    while rows:
        for piece in rows.step():        # a piece of each row that has something to send
            ...

A step computes the next pieces of all live rows together. Between two steps rows join and leave, so that a
row that comes later does not wait for the first to end. A server makes the steps; on TorchServe, which
knows nothing of them, `stream_batch` makes them for one batch.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torchport_runtime.errors import BadRequest, SignatureError
from torchport_runtime.requests.json_text import json_text
from torchport_runtime.requests.request import Answer, InferenceRequest, error_answer

logger = logging.getLogger(__name__)

TEXT, JSON_LINES, EVENTS = "text/plain; charset=utf-8", "application/x-ndjson", "text/event-stream"
"""Content types whose pieces are texts or values. Bytes of any other content type are sent as they are."""

_LINE_END = re.compile(r"\r\n|\r|\n")


def content_type_for(own: str, accept: str) -> str:
    """The content type of a stream, by the handler's own and the client's `Accept`.

    Text may be asked for as JSON lines or events, JSON lines as events. Whatever else a client asks for, it
    gets the handler's own.
    """
    offered = {TEXT: (JSON_LINES, EVENTS), JSON_LINES: (EVENTS,)}.get(own, ())
    ranges = [[part.strip().lower() for part in item.split(";")] for item in accept.split(",")]
    for media, *parameters in sorted(ranges, key=_quality, reverse=True):
        if media == own.partition(";")[0] or not _quality([media, *parameters]):
            break
        if media in offered:
            return media
    return own


def _quality(parts: list[str]) -> float:
    for part in parts[1:]:
        if re.fullmatch(r"q=[01](\.[0-9]{0,3})?", part):
            return float(part[2:])
    return 1.0


def written(value: Any, content_type: str) -> bytes:
    """A piece as bytes of a stream of this content type.

    Raises:
        TypeError, ValueError, RecursionError: JSON cannot hold the value.
    """
    is_bytes = isinstance(value, (bytes, bytearray, memoryview))
    if content_type not in (JSON_LINES, EVENTS):
        if is_bytes:
            return bytes(value)
        return (value if isinstance(value, str) else json_text(value)).encode("utf-8", "replace")
    if is_bytes:
        value = bytes(value).decode("utf-8", "replace")
    if content_type == JSON_LINES:
        return json_text(value).encode("utf-8", "replace") + b"\n"
    text = value if isinstance(value, str) else json_text(value)
    lines = "".join(f"data: {line}\n" for line in _LINE_END.split(text))
    return f"{lines}\n".encode("utf-8", "replace")


class LiveRow:
    """A request whose answer is being streamed.

    `state` is the handler's own: what it needs for the row's next step.
    """

    def __init__(self, request: InferenceRequest, content_type: str) -> None:
        self.request, self.content_type = request, content_type
        self.state: Any = None
        self.is_gone = False
        """Whether the client has left before the end."""
        self.has_ended = False
        """Whether the handler has ended the row."""
        self.streams = False
        """Whether a piece has been taken to be sent."""
        self._unsent: list[bytes] = []
        self._error: Answer | None = None

    def send(self, value: Any) -> None:
        """Send text, bytes or a value for JSON as the next piece."""
        if self.has_ended:
            return
        try:
            self._unsent.append(written(value, self.content_type))
        except (TypeError, ValueError, RecursionError):
            self.fail(ValueError("a piece is nothing that JSON can say"))

    def end(self) -> None:
        """End the answer."""
        self.has_ended = True

    def fail(self, error: Exception) -> None:
        """End the answer with an error.

        Before the first piece, the client of a `BadRequest` gets its message with a 4xx. After it, the
        stream is cut off.
        """
        if self.has_ended:
            return
        self.has_ended = True
        if isinstance(error, (BadRequest, SignatureError)):
            self._error = error_answer(error)
            return
        logger.error("the handler failed to stream an answer", exc_info=error)
        said = {
            "code": 500,
            "type": "InternalServerException",
            "message": "the handler failed to stream this answer: see the model's log",
        }
        self._error = Answer(said, status=500)

    def take(self) -> Piece | None:
        """What is to be sent now; None for nothing."""
        body = b"".join(self._unsent)
        self._unsent.clear()
        if self._error is not None:
            text = json_text(self._error.value).encode()
            return Piece(None, text, self._error.content_type, self._error.status, True)
        if not (body or self.has_ended):
            return None
        self.streams = True
        return Piece(None, body, self.content_type, 200, self.has_ended)


@dataclass(slots=True)
class Piece:
    """What a row sends after a step, or its end; `key` says which row.

    `status` is 200, or that of the row's error, whose message is the body then.
    """

    key: Any
    body: bytes
    content_type: str
    status: int
    is_last: bool


class Streaming(Protocol):
    """What is asked of a handler."""

    @property
    def stream_type(self) -> str: ...

    def join(self, row: LiveRow) -> None: ...

    def step(self, rows: Sequence[LiveRow]) -> None: ...

    def leave(self, row: LiveRow) -> None: ...


class LiveRows:
    """The live rows of a handler, by key."""

    def __init__(self, handler: Streaming) -> None:
        self._handler = handler
        self._rows: dict[Any, LiveRow] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def join(self, key: Any, fields: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        """Begin a row. Its first piece, or its refusal, comes of the next step."""
        content_type = content_type_for(self._handler.stream_type, headers.get("accept", ""))
        row = self._rows[key] = LiveRow(InferenceRequest(fields, headers), content_type)
        _guarded(lambda: self._handler.join(row), row)

    def leave(self, key: Any) -> None:
        """Drop a row whose client is gone. Nothing more is computed for it."""
        row = self._rows.pop(key, None)
        if row is not None:
            row.is_gone = True
            self._end(row)

    def step(self) -> list[Piece]:
        """Compute one step of all rows; the pieces to send."""
        live = [row for row in self._rows.values() if not row.has_ended]
        if live:
            try:
                self._handler.step(live)
            except MemoryError:
                raise
            except Exception as err:  # Nobody knows whose row it was.
                for row in live:
                    row.fail(err)
        pieces = []
        for key, row in list(self._rows.items()):
            piece = row.take()
            if piece is not None:
                piece.key = key
                pieces.append(piece)
            if row.has_ended:
                del self._rows[key]
                self._end(row)
        return pieces

    def _end(self, row: LiveRow) -> None:
        try:
            self._handler.leave(row)
        except MemoryError:
            raise
        except Exception:
            logger.exception("the handler's leave failed")


def _guarded(do: Callable[[], None], row: LiveRow) -> None:
    """Do something for a row; what it raises ends that row alone."""
    try:
        do()
    except MemoryError:
        raise
    except Exception as err:
        row.fail(err)


def step_generators(rows: Sequence[LiveRow], stream: Callable[[InferenceRequest], Any]) -> None:
    """One step of rows whose state is a generator: each gives its next piece."""

    def go_on(row: LiveRow) -> None:
        if row.state is None:
            row.state = iter(stream(row.request))
        try:
            value = next(row.state)
        except StopIteration:
            row.end()
        else:
            if value is not None:
                row.send(value)

    for row in rows:
        _guarded(lambda row=row: go_on(row), row)  # type: ignore[misc]


def whole_answers(handler: Streaming, requests: Sequence[InferenceRequest]) -> list[Answer]:
    """The answers to requests, each with all of its pieces together, as text or bytes."""
    rows = LiveRows(handler)
    for index, request in enumerate(requests):
        rows.join(index, request.fields, request.headers)
    bodies: list[list[bytes]] = [[] for _ in requests]
    answers = [Answer(b"") for _ in requests]
    while rows:
        for piece in rows.step():
            bodies[piece.key].append(piece.body)
            if piece.is_last:
                body = b"".join(bodies[piece.key])
                is_text = piece.content_type.startswith("text/")
                answers[piece.key] = Answer(
                    body.decode("utf-8", "replace") if is_text else body, piece.content_type
                )
            if piece.status != 200:
                answers[piece.key] = Answer(json.loads(piece.body), piece.content_type, piece.status)
    return answers
