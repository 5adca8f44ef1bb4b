"""Checks of settings' values; each raises `ServerError` with the setting's name.

    require_range("max_connections", 0, 1, 1_000_000)
    # ServerError: max_connections=0: 1 to 1000000 is expected

Wrong values are refused when the server starts, not when the first request needs them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torchport.errors import ServerError

MAX_WORKERS = 1024
"""Maximum number of workers of one model version. More is taken for a mistake and refused."""

_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

_HOST_NAME = re.compile(r"\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")

_SNAPSHOT_NUMBERS: Mapping[str, tuple[int, int]] = {
    "minWorkers": (0, MAX_WORKERS),
    "maxWorkers": (0, MAX_WORKERS),
    "batchSize": (1, 1 << 20),
    "maxBatchDelay": (0, 1 << 30),
    "responseTimeout": (1, 1 << 30),
    "startupTimeout": (0, 1 << 30),
}


def require_range(key: str, value: float | None, least: float, most: float) -> None:
    """Refuse a number outside of `least` to `most`; accept None, not given."""
    if value is not None and not least <= value <= most:
        raise ServerError(f"{key}={value}: {least:g} to {most:.0f} is expected")


def require_port(key: str, port: int) -> None:
    """Refuse a port number above 65535."""
    if port > 65535:
        raise ServerError(f"{key}={port}: a port is at most 65535")


def require_one_of(key: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is none of these."""
    if value not in known:
        raise ServerError(f"{key}={value}: {' or '.join(known)} is expected")


def require_pattern(key: str, pattern: str) -> None:
    """Refuse text that is not a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as err:
        raise ServerError(f"{key}={pattern!r}: not a regular expression ({err})") from err


def require_header_value(key: str, text: str) -> None:
    """Refuse text that cannot be a header's value."""
    if not _HEADER_VALUE.fullmatch(text):
        raise ServerError(f"{key}={text!r}: not a value that a header can have")


def require_host_name(key: str, text: str) -> None:
    """Refuse text that is neither a host's name, one of a domain (`.example.org`), nor `*`."""
    if text != "*" and not _HOST_NAME.fullmatch(text):
        raise ServerError(f"{key}={text!r}: models.example.org, .example.org or * is expected")


def require_model_settings(models: Mapping[str, Any]) -> None:
    """Refuse `models` that do not map names and versions to objects."""
    for name, versions in models.items():
        entries = versions.values() if isinstance(versions, Mapping) else [versions]
        if not all(isinstance(entry, Mapping) for entry in entries):
            raise ServerError(f'models: {name!r}: {{"VERSION": {{"minWorkers": 1}}}} is expected')


def require_snapshot(key: str, snapshot: Any) -> None:
    """Refuse a snapshot that has not the shape of TorchServe's.

    Raises:
        ServerError: the shape is wrong; the message names the version.
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
