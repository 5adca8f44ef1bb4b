"""Reads settings from `config.properties`, the environment and the command line.

settings_from(read_properties(path), os.environ, {"job_queue_size": 10})
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torchport.errors import ServerError
from torchport.server.settings.address import Address
from torchport.server.settings.settings import ServerSettings

_IGNORED_QUIETLY = frozenset(
    """
    number_of_netty_threads netty_client_threads prefer_direct_buffer use_native_io io_ratio async_logging
    initial_worker_port initial_distribution_port vmargs enable_envvars_config use_env_allowed_urls
    metrics_mode model_metrics_auto_detect model_server_home system_metrics_cmd
    metric_time_interval version tsConfigFile python workflow_store debug ts_open_inference_protocol
    grpc_inference_max_connection_age_ms grpc_management_max_connection_age_ms
    grpc_inference_max_connection_age_grace_ms grpc_management_max_connection_age_grace_ms
    """.split()  # noqa: SIM905
)
"""TorchServe's keys that are ignored without a warning. They concern Java, netty or its channel to
workers."""

_VARIABLES = {"token_expiration_min": "TS_TOKEN_EXPIRATION_TIME_MIN"}
"""Variables that are not called as their keys are; the names are TorchServe's."""

_ADDRESS_KEYS = {"inference_address": 8080, "management_address": 8081, "metrics_address": 8082}
_GRPC_KEYS = {"grpc_inference": 7070, "grpc_management": 7071}


def settings_from(
    properties: Mapping[str, str],
    environ: Mapping[str, str],
    given: Mapping[str, Any] | None = None,
) -> ServerSettings:
    """Combine `config.properties`, the environment and the command line into settings.

    `given`, the command line, overrides the file. `TS_KEY` variables override both if the file says
    `enable_envvars_config=true`, as on TorchServe.

    Raises:
        ServerError: a value cannot be read; the message names the key.
    """
    values = dict(properties)
    values |= {key: str(value) for key, value in (given or {}).items() if value is not None}
    values |= environment_settings(properties, environ)
    settings: dict[str, Any] = {}
    for key, port in _ADDRESS_KEYS.items():
        if key in values:
            settings[key.removesuffix("_address")] = Address.parse(key, values.pop(key), port)
    for name, port in _GRPC_KEYS.items():
        host = values.pop(f"{name}_address", "127.0.0.1")
        number = _integer(f"{name}_port", values.pop(f"{name}_port", str(port)))
        settings[name] = Address("http", host, number)
    known = {f.name: f for f in fields(ServerSettings)}
    ignored = []
    for key, text in values.items():
        if key in known and key != "ignored":
            settings[key] = _read(key, text)
        elif key not in _IGNORED_QUIETLY:
            ignored.append(key)
    return ServerSettings(**settings, ignored=tuple(sorted(ignored)))


def environment_settings(properties: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """What `TS_KEY` variables say, by key; empty unless the file says `enable_envvars_config=true`.

    Raises:
        ServerError: the file says neither true nor false.
    """
    if not _boolean("enable_envvars_config", properties.get("enable_envvars_config", "false")):
        return {}
    names = {f.name for f in fields(ServerSettings)} | set(_ADDRESS_KEYS)
    names |= {f"{name}_{part}" for name in _GRPC_KEYS for part in ("address", "port")}
    if properties.get("use_env_allowed_urls", "false").lower() != "true":
        names -= {"allowed_urls", "archive_roots"}
    found = {name: environ.get(_VARIABLES.get(name, f"TS_{name.upper()}")) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _read(key: str, text: str) -> Any:
    """Convert a value to the type of its setting."""
    kind = next(f.type for f in fields(ServerSettings) if f.name == key)
    if kind in ("bool", "bool | None"):
        return _boolean(key, text)
    if kind in ("int", "int | None"):
        return _integer(key, text)
    if kind == "float":
        return _number(key, text)
    if kind in ("Path", "Path | None"):
        return Path(text)
    if kind == "tuple[str, ...]":
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind.startswith("Mapping"):
        return _mapping(key, text)
    return text


def _boolean(key: str, text: str) -> bool:
    if text.strip().lower() not in ("true", "false"):
        raise ServerError(f"{key}={text!r}: true or false is expected")
    return text.strip().lower() == "true"


def _integer(key: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text.strip()):
        raise ServerError(f"{key}={text!r}: a whole number is expected")
    return int(text)


def _number(key: str, text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text.strip()):
        raise ServerError(f"{key}={text!r}: a number is expected")
    return float(text)


def _mapping(key: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise ServerError(f"{key}: not JSON ({err})") from err
    if not isinstance(value, dict):
        raise ServerError(f"{key}: a JSON object is expected")
    return value
