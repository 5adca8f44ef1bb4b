"""Turns a handler's return value into answers, as TorchServe does."""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import Any

from torchport.server.wire import Answer
from torchport.server.worker.context import Context

logger = logging.getLogger(__name__)


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
    except (TypeError, ValueError, RecursionError):
        logger.warning("the handler's answer is nothing that can be sent", exc_info=True)
        return failed(503, "Unsupported model output data type.", count)


def answer_of(value: Any, index: int, context: Context) -> Answer:
    """The answer to row `index`, with the handler's status and headers.

    Raises:
        TypeError, ValueError, RecursionError: the value is not bytes, text, a tensor or JSON, or the
        status is not a number.
    """
    status, phrase = context.get_response_status(index)
    content_type, others = "", []
    for name, text in context.get_response_headers(index).items():
        if str(name).lower() == "content-type":
            content_type = content_type or str(text)
        else:
            others.append((str(name), str(text)))
    return Answer(200 if status is None else int(status), _body(value), content_type, others, phrase or "")


def failed(status: int, message: str, count: int) -> list[Answer]:
    """The same error of the server for every row."""
    return [Answer(status=status, body=message.encode(), error="InternalServerException")] * count


def _body(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()
    return json.dumps(value, indent=2).encode()
