"""The server's log on standard error: text, or one JSON object per line.

    set_up("json")
    current_request.set("my-own-id-17")  # what is logged in this task from here on has the request's id

A record may have the fields of `_EXTRA`, by `extra={...}`. `traceback` is that of an exception in a worker.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

from torchport.errors import ServerError

FORMATS = ("text", "json")

current_request: ContextVar[str] = ContextVar("current_request", default="")
"""Id of the request that is worked on; empty outside of any."""

logger = logging.getLogger(__name__)

_EXTRA = (
    *("request_id", "request_ids", "model", "worker", "pid"),
    *("client", "method", "path", "status", "milliseconds", "traceparent"),
)


class JsonFormatter(logging.Formatter):
    """Formats records as JSON lines, with the access log's fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        requests = _requests_of(record)
        if len(requests) == 1:
            entry["request_id"] = requests[0]
        for name in _EXTRA:
            value = getattr(record, name, None)
            if value is not None and value != []:
                entry[name] = value
        traceback = getattr(record, "traceback", "")
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        elif traceback:
            entry["exception"] = traceback
        return json.dumps(entry, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """Formats records as text, with the ids of their requests; a traceback follows in the same record."""

    def format(self, record: logging.LogRecord) -> str:
        traceback = getattr(record, "traceback", "")
        text = super().format(record)
        return f"{text}\n{traceback}" if traceback else text

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        unsaid = [request for request in _requests_of(record) if request not in record.message]
        return f"{text} [request {', '.join(unsaid)}]" if unsaid else text


def _requests_of(record: logging.LogRecord) -> list[str]:
    given = getattr(record, "request_ids", None)
    if given is None:
        given = [getattr(record, "request_id", "") or current_request.get()]
    return [request for request in given if request]


def set_up(log_format: str) -> None:
    """Send the log to standard error.

    Raises:
        ServerError: the format is unknown.
    """
    if log_format not in FORMATS:
        raise ServerError(f"log_format={log_format!r}: one of {', '.join(FORMATS)} is expected")
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(TextFormatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # It warns of every form that a client has made badly.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


def tell_where(access_log: bool) -> None:
    """Log where the log goes, and what is in it."""
    logger.info(
        "the log, with the workers' output, goes to standard error%s; %s",
        _file_of_standard_error(),
        "a line for each request" if access_log else "no line for each request (--access-log)",
    )


def _file_of_standard_error() -> str:
    """Its file in parentheses, where the system can name one; else an empty text."""
    try:
        path = os.readlink(f"/proc/self/fd/{sys.stderr.fileno()}")
    except (OSError, ValueError):  # Not Linux, or no descriptor.
        return ""
    return f" ({path})" if path.startswith("/") else ""
