"""Makes reports safe to send, whatever a handler has put into them.

    socket.sendall(safe_frame(Answered(slot, batch, answers, samples, memory)))

A handler is a user's code, and much of what it gives comes from clients: statuses, phrases, headers,
messages, metrics. Every report passes here. One that the front could not read is changed until it can be,
and what was changed is in the log.
"""

from __future__ import annotations

import logging
import traceback
from contextlib import suppress
from typing import Any

from torchport.server.wire import (
    HEADER,
    MAX_HEADER,
    MAX_HEADERS,
    MAX_LABELS,
    MAX_MESSAGE,
    MAX_NAME,
    MAX_STATUS,
    MIN_STATUS,
    Answer,
    Answered,
    Left,
    Loaded,
    LoadFailed,
    Logged,
    MetricValue,
    Partial,
    Report,
    Sampled,
    Tensor,
    decode_report,
    encode_frame,
)

logger = logging.getLogger(__name__)


def safe_frame(report: Report) -> bytearray:
    """Encode a report as a frame that the front can read."""
    with suppress(Exception):
        # Most reports are as they must be; asking the front's own decoder is the quickest way to know.
        frame = encode_frame(report)
        decode_report(memoryview(frame)[HEADER.size :])
        return frame
    return encode_frame(sanitized(report))


def sanitized(report: Report) -> Report:
    """The report, with every value in the type and the range that the wire has for it."""
    if isinstance(report, Answered):
        report.answers = [_answer(answer) for answer in report.answers]
        report.samples = [_sample(sample) for sample in report.samples]
    elif isinstance(report, Partial | Left):
        report.answer = _answer(report.answer)
        if isinstance(report, Left):
            report.samples = [_sample(sample) for sample in report.samples]
    elif isinstance(report, Sampled):
        report.samples = [_sample(sample) for sample in report.samples]
    elif isinstance(report, Loaded):
        report.description = text_of(report.description)
    elif isinstance(report, LoadFailed):
        report.reason = text_of(report.reason)
        # The end of a traceback says most.
        report.traceback = text_of(report.traceback[-MAX_MESSAGE:])
    elif isinstance(report, Logged):
        report.model, report.message = text_of(report.model), text_of(report.message)
        report.traceback = text_of(report.traceback[-MAX_MESSAGE:])
        report.requests = [text_of(id) for id in report.requests]
    return report


def text_of(value: Any, limit: int = MAX_MESSAGE) -> str:
    """A value as text that UTF-8 can hold, of at most `limit` characters.

    Halves of surrogate pairs become question marks. A value that cannot be made text is named by its type.
    """
    try:
        text = value if isinstance(value, str) else str(value)
    except SystemExit:
        raise
    except BaseException:
        # A handler's `__str__` may raise anything, and may be called with a client's value.
        text = f"({type(value).__name__} without text)"
    # Methods of `str`, not of the value: a subclass may have its own.
    return str.encode(str.__getitem__(text, slice(limit)), "utf-8", "replace").decode()


def traceback_of(err: BaseException, limit: int) -> str:
    """The last `limit` calls of an exception's traceback, and of those that it came from.

    An exception whose own methods fail is named by its type. Python asks them even whether it is true.
    """
    try:
        return "".join(traceback.format_exception(err, limit=-limit)).rstrip()
    except SystemExit:
        raise
    except BaseException:
        calls = "".join(traceback.format_tb(err.__traceback__, limit=-limit))
        return f"Traceback (most recent call last):\n{calls}{type(err).__name__}: {text_of(err)}"


def status_of(value: Any) -> int:
    """A handler's status, from 200 to 599; 500 for what is none.

    A status below 200 would announce another answer, and no client understands one above 599.
    """
    with suppress(Exception):
        status = int(value)
        if MIN_STATUS <= status <= MAX_STATUS:
            return status
    said = text_of(value, 80)
    logger.warning("the handler's status %s is none from 200 to 599: 500 is sent instead", said)
    return 500


def body_of(value: Any) -> bytes:
    """The bytes of a value that has some; else those of its text."""
    if type(value) is bytes:
        return value
    try:
        # Not `bytes(value)`: a subclass may have a `__bytes__` of its own.
        return bytes(memoryview(value))
    except Exception:
        return text_of(value).encode()


def _answer(answer: Answer) -> Answer:
    if len(answer.headers) > MAX_HEADERS:
        logger.warning("the handler gave %d headers: %d are sent", len(answer.headers), MAX_HEADERS)
    return Answer(
        status=status_of(answer.status),
        body=body_of(answer.body),
        content_type=text_of(answer.content_type, MAX_NAME),
        headers=[
            (text_of(name, MAX_NAME), text_of(text, MAX_HEADER))
            for name, text in answer.headers[:MAX_HEADERS]
        ],
        phrase=text_of(answer.phrase, MAX_NAME),
        error=text_of(answer.error, MAX_NAME),
        tensors=[
            Tensor(text_of(t.name), text_of(t.dtype), [int(size) for size in t.shape], body_of(t.data))
            for t in answer.tensors
        ],
    )


def _sample(sample: MetricValue) -> MetricValue:
    value = float("nan")
    with suppress(Exception):
        value = float(sample.value)
    return MetricValue(
        name=text_of(sample.name, MAX_NAME),
        kind=text_of(sample.kind, MAX_NAME),
        unit=text_of(sample.unit, MAX_NAME),
        value=value,
        labels=[
            (text_of(name, MAX_NAME), text_of(text, MAX_NAME)) for name, text in sample.labels[:MAX_LABELS]
        ],
    )
