"""What a setting may be, beyond its type.

    check(settings)                      # ServerError: max_connections=0: 1 to 1000000 is expected

Everything is refused when the server starts, not when the first request needs it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torchport.errors import ServerError

if TYPE_CHECKING:
    from torchport.server.settings.settings import ServerSettings

MAX_WORKERS = 1024
_YEARS = 1e9
_BYTES = 1 << 33
"""Half of what one message between the server and a worker may have."""

RANGES: Mapping[str, tuple[float, float]] = {
    "default_workers_per_model": (0, MAX_WORKERS),
    "default_response_timeout": (1, _YEARS),
    "default_startup_timeout": (1, _YEARS),
    "unregister_model_timeout": (0, _YEARS),
    "job_queue_size": (1, 1_000_000),
    "number_of_gpu": (0, 1024),
    "max_request_size": (1, _BYTES),
    "max_response_size": (1, _BYTES),
    "max_header_size": (1024, 1 << 24),
    "header_timeout": (0.1, _YEARS),
    "body_timeout": (0.1, _YEARS),
    "min_body_rate": (1, 1 << 30),
    "keep_alive_timeout": (0.1, _YEARS),
    "max_connections": (1, 1_000_000),
    "shutdown_timeout": (0, _YEARS),
    "token_expiration_min": (0.001, _YEARS),
}
"""The least and the most that a number may be."""

_CORS = ("cors_allowed_origin", "cors_allowed_methods", "cors_allowed_headers")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

_SNAPSHOT_NUMBERS: Mapping[str, tuple[int, int]] = {
    "minWorkers": (0, MAX_WORKERS),
    "maxWorkers": (0, MAX_WORKERS),
    "batchSize": (1, 1 << 20),
    "maxBatchDelay": (0, 1 << 30),
    "responseTimeout": (1, 1 << 30),
    "startupTimeout": (1, 1 << 30),
}


def check(settings: ServerSettings) -> None:
    """Hold every setting against what it may be.

    Raises:
        ServerError: one that is not; the message names it.
    """
    for key, (least, most) in RANGES.items():
        value = getattr(settings, key)
        if value is not None and not least <= value <= most:
            raise ServerError(f"{key}={value}: {least:g} to {most:.0f} is expected")
    for key in ("grpc_inference", "grpc_management"):
        port = getattr(settings, key).port
        if port > 65535:
            raise ServerError(f"{key}_port={port}: a port is at most 65535")
    for pattern in settings.allowed_urls:
        _check_pattern("allowed_urls", pattern)
    _check_pattern("blacklist_env_vars", settings.blacklist_env_vars)
    for key in _CORS:
        text = getattr(settings, key)
        if not _HEADER_VALUE.fullmatch(text):
            raise ServerError(f"{key}={text!r}: not a value that a header can have")
    for name, versions in settings.models.items():
        entries = versions.values() if isinstance(versions, Mapping) else [versions]
        if not all(isinstance(entry, Mapping) for entry in entries):
            raise ServerError(f'models: {name!r}: {{"VERSION": {{"minWorkers": 1}}}} is expected')
    if settings.model_snapshot is not None:
        check_snapshot("model_snapshot", settings.model_snapshot)


def check_snapshot(key: str, snapshot: Any) -> None:
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


def _check_pattern(key: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as err:
        raise ServerError(f"{key}={pattern!r}: not a regular expression ({err})") from err
