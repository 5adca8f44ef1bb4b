"""What a setting may be, beyond its type: each function raises `ServerError` with the setting's name.

    require_range("max_connections", 0, 1, 1_000_000)
    # ServerError: max_connections=0: 1 to 1000000 is expected

Everything is refused when the server starts, not when the first request needs it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torchport.errors import ServerError

MAX_WORKERS = 1024
"""Workers of one version: more is a mistake."""

_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

_SNAPSHOT_NUMBERS: Mapping[str, tuple[int, int]] = {
    "minWorkers": (0, MAX_WORKERS),
    "maxWorkers": (0, MAX_WORKERS),
    "batchSize": (1, 1 << 20),
    "maxBatchDelay": (0, 1 << 30),
    "responseTimeout": (1, 1 << 30),
    "startupTimeout": (1, 1 << 30),
}


def require_range(key: str, value: float | None, least: float, most: float) -> None:
    """Refuse a number that is not from `least` to `most`; None is a setting that was not given."""
    if value is not None and not least <= value <= most:
        raise ServerError(f"{key}={value}: {least:g} to {most:.0f} is expected")


def require_port(key: str, port: int) -> None:
    """Refuse a number that no port has."""
    if port > 65535:
        raise ServerError(f"{key}={port}: a port is at most 65535")


def require_pattern(key: str, pattern: str) -> None:
    """Refuse what is not a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as err:
        raise ServerError(f"{key}={pattern!r}: not a regular expression ({err})") from err


def require_header_value(key: str, text: str) -> None:
    """Refuse a text that no header can have as its value."""
    if not _HEADER_VALUE.fullmatch(text):
        raise ServerError(f"{key}={text!r}: not a value that a header can have")


def require_model_settings(models: Mapping[str, Any]) -> None:
    """Refuse `models` that are not objects by version and by name."""
    for name, versions in models.items():
        entries = versions.values() if isinstance(versions, Mapping) else [versions]
        if not all(isinstance(entry, Mapping) for entry in entries):
            raise ServerError(f'models: {name!r}: {{"VERSION": {{"minWorkers": 1}}}} is expected')


def require_snapshot(key: str, snapshot: Any) -> None:
    """Hold a snapshot against the shape that TorchServe's have.

    Raises:
        ServerError: it is none; the message names the version that is wrong.
    """
    models = snapshot.get("models") if isinstance(snapshot, Mapping) else None
    if not isinstance(models, Mapping):
        raise ServerError(f'{key}: {{"models": {{NAME: {{VERSION: {{...}}}}}}}} is expected')
    for name, versions in models.items():
        if not isinstance(versions, Mapping):
            raise ServerError(f"{key}: {name!r}: an object with versions is expected")
        for number, entry in versions.items():
            where = f"{key}: {name} {number}"
            if not isinstance(entry, Mapping) or not isinstance(entry.get("marName"), str):
                raise ServerError(f"{where}: an object with marName is expected")
            for field, (least, most) in _SNAPSHOT_NUMBERS.items():
                value = entry.get(field)
                whole = isinstance(value, int) and not isinstance(value, bool)
                if value is not None and not (whole and least <= value <= most):
                    raise ServerError(f"{where}: {field}={value!r}: {least} to {most} is expected")
