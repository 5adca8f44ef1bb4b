"""Settings of one model version: from its `model-config.yaml`, its registration and the server.

torchport_server:                # our own keys, beside TorchServe's
  queue_timeout_ms: 0            # rows that waited longer are answered 503; 0: no limit
  recycle_after_requests: 0      # a worker is replaced after this number of requests; 0: never
  recycle_above_mb: 0            # a worker is replaced above this resident memory; 0: never
  shared_worker: ""              # models with the same name here share one process; "": a separate one
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torchport.server.errors import ArchiveRefused
from torchport.server.models.semantics import require_known_semantics
from torchport.server.settings.checks import MAX_WORKERS
from torchport.server.settings.settings import ServerSettings
from torchport_runtime.cores import available_cores
from torchport_runtime.suggest import did_you_mean

logger = logging.getLogger(__name__)

_TORCHSERVE_KEYS = {
    "minWorkers": "min_workers",
    "maxWorkers": "max_workers",
    "batchSize": "batch_size",
    "maxBatchDelay": "max_batch_delay",
    "responseTimeout": "response_timeout",
    "startupTimeout": "startup_timeout",
    "jobQueueSize": "job_queue_size",
    "clientTimeoutInMills": "client_timeout_ms",
    "maxRetryTimeoutInSec": "max_retry_timeout",
    "deviceType": "device_type",
    "deviceIds": "device_ids",
}
_UNSUPPORTED = ("parallelLevel", "torchrun", "useJobTicket", "useVenv")
"""TorchServe's keys that change no answer. Without `parallelType` the first two have no effect there
either."""

_OF_BATCHES = ("batch_size", "max_batch_delay")
_OWN_KEYS = ("queue_timeout_ms", "recycle_after_requests", "recycle_above_mb", "shared_worker")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Settings of one model version.

    Times are seconds unless their name says otherwise. `max_batch_delay`, in milliseconds, is reported and
    never waited out: a free worker takes what waits at once.
    """

    min_workers: int = 1
    max_workers: int = 1
    batch_size: int = 1
    max_batch_delay: int = 100
    response_timeout: int = 120
    startup_timeout: int = 120
    job_queue_size: int = 100
    client_timeout_ms: int = 0
    max_retry_timeout: int = 300
    device_type: str = ""
    device_ids: tuple[int, ...] = ()
    queue_timeout_ms: int = 0
    recycle_after_requests: int = 0
    recycle_above_mb: int = 0
    shared_worker: str = ""

    def to_json(self) -> dict[str, int]:
        """The settings that descriptions and snapshots show, by TorchServe's names."""
        return {
            "minWorkers": self.min_workers,
            "maxWorkers": self.max_workers,
            "batchSize": self.batch_size,
            "maxBatchDelay": self.max_batch_delay,
            "responseTimeout": self.response_timeout,
            "startupTimeout": self.startup_timeout,
        }

    def with_workers(self, least: int, most: int) -> ModelSettings:
        return replace(self, min_workers=least, max_workers=most)


def model_settings(
    config: Mapping[str, Any],
    server: ServerSettings,
    *,
    asked: Mapping[str, Any] | None = None,
    known: Mapping[str, Any] | None = None,
) -> ModelSettings:
    """The settings of a version with this `model-config.yaml`.

    Args:
        asked: values of the registration. Its batch size and delay take precedence; for other keys the
            archive does, as on TorchServe.
        known: the version's entry in the server's `models={...}`.

    Raises:
        ArchiveRefused: a value has the wrong type, or a key of `torchport_server` is unknown.
    """
    values: dict[str, Any] = {
        "min_workers": 1,
        "max_workers": 1,
        "response_timeout": server.default_response_timeout,
        "startup_timeout": server.default_startup_timeout,
        "job_queue_size": server.job_queue_size,
    }
    registered = {key: value for key, value in (asked or {}).items() if value is not None}
    late: dict[str, Any] = {key: registered.pop(key) for key in _OF_BATCHES if key in registered}
    values |= registered
    for source, where in ((known or {}, "models in config.properties"), (config, "model-config.yaml")):
        given = {_TORCHSERVE_KEYS[key]: value for key, value in source.items() if key in _TORCHSERVE_KEYS}
        values |= {key: _checked(where, key, value) for key, value in given.items()}
    require_known_semantics(config)
    unsupported = [key for key in _UNSUPPORTED if config.get(key)]
    if unsupported:
        logger.warning("model-config.yaml: %s: not supported, ignored", ", ".join(unsupported))
    _bound_workers(values, given, worker_limit(server, registered, known or {}))
    own = config.get("torchport_server") or {}
    if not isinstance(own, Mapping):
        raise ArchiveRefused(
            f"model-config.yaml: torchport_server: {repr(own)[:80]}, names and values are expected"
        )
    for key, value in own.items():
        if key not in _OWN_KEYS:
            hint = did_you_mean(str(key), _OWN_KEYS)
            raise ArchiveRefused(f"model-config.yaml: torchport_server.{str(key)[:80]} is not known: {hint}")
        values[key] = _checked("model-config.yaml", key, value)
    values |= late
    if values["max_workers"] < values["min_workers"]:
        values["max_workers"] = values["min_workers"]
    return ModelSettings(**values)


def worker_limit(server: ServerSettings, asked: Mapping[str, Any], known: Mapping[str, Any]) -> int:
    """The maximum number of workers that an archive may ask for by itself.

    It is `max_workers_of_archive`; else twice the cores or the devices, and at least four. It is more where
    the registration or the operator's `models={...}` name more.
    """
    limit = server.max_workers_of_archive
    if limit is None:
        limit = max(4, 2 * available_cores(), 2 * (server.number_of_gpu or 0))
    said = [asked.get(key) for key in ("min_workers", "max_workers")]
    said += [_whole(known.get(key)) for key in ("minWorkers", "maxWorkers")]
    return max([limit, *(number for number in said if isinstance(number, int))])


def _bound_workers(values: dict[str, Any], of_archive: Mapping[str, Any], limit: int) -> None:
    """Lower the number of workers that an archive asks for to `limit`. No answer changes by it."""
    for key in ("min_workers", "max_workers"):
        if key in of_archive and values[key] > limit:
            logger.warning(
                "model-config.yaml: %s is %d: %d is the limit on this machine (max_workers_of_archive)",
                key,
                values[key],
                limit,
            )
            values[key] = limit


def _checked(where: str, key: str, value: Any) -> Any:
    kind = next(f.type for f in fields(ModelSettings) if f.name == key)
    if kind == "int":
        value = _whole(value)
        least = 1 if key in ("batch_size", "job_queue_size", "response_timeout", "startup_timeout") else 0
        most = MAX_WORKERS if key in ("min_workers", "max_workers") else 1 << 30
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            said = f"{key} is {repr(value)[:80]}"
            raise ArchiveRefused(f"{where}: {said}: a whole number from {least} to {most} is expected")
    elif kind == "str":
        return str(value)
    elif kind.startswith("tuple"):
        value = [_whole(each) for each in value] if isinstance(value, list) else value
        if not isinstance(value, list) or not all(type(v) is int and v >= 0 for v in value):
            raise ArchiveRefused(f"{where}: {key} is {repr(value)[:80]}: a list of whole numbers is expected")
        return tuple(value)
    return value


def _whole(value: Any) -> Any:
    """A whole number that is written as text or with a fraction of zero, as an int; other values as they are.

    >>> _whole("4"), _whole(50.0), _whole(0.5)
    (4, 50, 0.5)
    """
    if isinstance(value, str) and re.fullmatch(r" *-?[0-9]{1,18}(\.0*)? *", value):
        return int(value.partition(".")[0])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
