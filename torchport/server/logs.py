"""The server's log: text, or one JSON object per line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from torchport.errors import ServerError

FORMATS = ("text", "json")

_EXTRA = ("request_id", "client", "method", "path", "status", "milliseconds", "traceparent")


class JsonFormatter(logging.Formatter):
    """Formats records as JSON lines, with the access log's fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in _EXTRA:
            value = getattr(record, name, None)
            if value is not None:
                entry[name] = value
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


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
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # It warns of every form that a client has made badly.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
