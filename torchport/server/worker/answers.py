"""Turns a handler's return value into answers, as TorchServe does."""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import Any

from torchport.server.wire import Answer
from torchport.server.worker.context import Context
from torchport.server.worker.sanitizing import body_of, status_of, text_of

logger = logging.getLogger(__name__)

SMALLEST_IN_JSON = 4
"""By how much a tensor may shrink in JSON: `0,` for the eight bytes of a number."""


def answers_of(values: Any, count: int, context: Context) -> list[Answer]:
    """One answer for each of `count` rows.

    A value that cannot be sent fails the whole batch.
    """
    if not isinstance(values, list):
        logger.warning("the handler returned %s: a list is expected", type(values).__name__)
        return failed(503, "Invalid model predict output", count)
    if len(values) != count:
        logger.warning("the handler returned %d answers to %d requests", len(values), count)
        return failed(503, "number of batch response mismatched", count)
    try:
        return [answer_of(value, index, context) for index, value in enumerate(values)]
    except Exception:
        # The value's own methods may raise anything.
        logger.warning("the handler's answer is nothing that can be sent", exc_info=True)
        return failed(503, "Unsupported model output data type.", count)


def answer_of(value: Any, index: int, context: Context) -> Answer:
    """The answer to row `index`, with the handler's status and headers.

    Raises:
        Exception: the value is not bytes, text, a tensor or JSON, or its own methods fail.
    """
    status, phrase = context.get_response_status(index)
    content_type, others = "", []
    for name, text in context.get_response_headers(index).items():
        header = text_of(name), text_of(text)
        if header[0].lower() == "content-type":
            content_type = content_type or header[1]
        else:
            others.append(header)
    status = 200 if status is None else status_of(status)
    return Answer(status, _body(value), content_type, others, "" if phrase is None else text_of(phrase))


def failed(status: Any, message: Any, count: int) -> list[Answer]:
    """The same error of the server for every row."""
    body = text_of(message).encode()
    return [Answer(status=status_of(status), body=body, error="InternalServerException")] * count


def within(limit: int, answers: list[Answer]) -> list[Answer]:
    """The answers, with an error for each one of more than `limit` bytes; 0: without limit.

    A tensor counts as what it may be in JSON at the least.
    """
    if not limit:
        return answers
    sizes = [
        len(answer.body) + sum(len(tensor.data) for tensor in answer.tensors) // SMALLEST_IN_JSON
        for answer in answers
    ]
    return [
        answer if size <= limit else failed(500, too_large(size, limit), 1)[0]
        for answer, size in zip(answers, sizes, strict=True)
    ]


def too_large(size: int, limit: int) -> str:
    """The message about an answer of `size` bytes."""
    return f"the model's answer is too large: {size} bytes, max_response_size is {limit}"


def _body(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        return body_of(value)
    if isinstance(value, str):
        return str.encode(value, "utf-8", "replace")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()
    return json.dumps(value, indent=2).encode()
