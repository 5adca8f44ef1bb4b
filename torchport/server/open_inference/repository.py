"""The model repository, statistics and configuration extensions of the Open Inference Protocol.

await model_index(registry, only_ready=False)       # [{"name": "linear", "version": "1.0", ...}]
await load_model(registry, "linear", {})            # from the store, as a reload of it
model_statistics(registry, "linear", None)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from torchport.server.errors import ArchiveRefused, Forbidden, InvalidRequest
from torchport.server.models.management import refuse_web_pages, unregister
from torchport.server.models.registry import Registry
from torchport.server.models.reloading import reload
from torchport.server.models.statistics import Histogram
from torchport.server.models.version import ModelVersion
from torchport.server.open_inference.metadata import MAIN_GRAPH, model_metadata
from torchport.server.settings.address import Address
from torchport.server.settings.settings import ServerSettings
from torchport.store.folders import Store, version_key

_READY, _LOADING, _UNAVAILABLE = "READY", "LOADING", "UNAVAILABLE"
_NOT_LOADED = "it is in the store and is not loaded"


def require_model_control(
    settings: ServerSettings, origin: bytes | None, *, asked: Address, managed: Address
) -> None:
    """Refuse to load or unload models where management would be refused.

    `asked` is the address of the request, `managed` that of the management API. Without tokens, who may only
    ask models must not manage them because both come by the same address.

    Raises:
        Forbidden: the settings do not allow it.
    """
    refuse_web_pages(settings, origin)
    if not settings.enable_model_api:
        raise Forbidden("models are loaded and unloaded only with enable_model_api=true")
    if not settings.tokens and managed.is_loopback and not asked.is_loopback:
        raise Forbidden(
            "without tokens, models are managed only from the machine of the server: turn tokens on, or ask "
            "the management API"
        )


async def model_index(registry: Registry, *, only_ready: bool) -> list[dict[str, str]]:
    """Every version that is registered, and those of the store that are not loaded, unless `only_ready`."""
    found = {(v.model.name, v.model.version): _state(v) for v in registry.versions()}
    archives = await asyncio.to_thread(lambda: Store(registry.settings.model_store).archives())
    for name, versions in archives.items():
        for number in versions:
            found.setdefault((name, number), (_UNAVAILABLE, _NOT_LOADED))
    return [
        {"name": name, "version": number, "state": state, "reason": reason}
        for (name, number), (state, reason) in sorted(found.items())
        if state == _READY or not only_ready
    ]


def _state(version: ModelVersion) -> tuple[str, str]:
    if version.pool.ready:
        return _READY, ""
    if version.pool.cannot_load:
        return _UNAVAILABLE, version.pool.refusal
    return (_LOADING, "") if version.pool.wanted else (_UNAVAILABLE, "it has no workers")


async def load_model(registry: Registry, name: str, parameters: Mapping[str, Any]) -> None:
    """Load a model's versions of the store that are new or have changed, and wait until they are ready.

    Raises:
        InvalidRequest: parameters came, or the name is a URL.
        ArchiveNotFound: there is no such model.
        ArchiveRefused: an archive cannot be served; the message has the reason.
    """
    if parameters:
        given = ", ".join(sorted(map(str, parameters)))[:80]
        raise InvalidRequest(f"parameters {given}: a model is loaded as its archive in the store is")
    done = await reload(registry, [name])
    if done.failed:
        raise ArchiveRefused(f"not everything was loaded. {done}")


async def unload_model(registry: Registry, name: str) -> None:
    """Remove every version of a model, each after it has answered its waiting requests.

    Raises:
        ModelNotFound: there is no such model.
    """
    model = registry.model(name)
    numbers = sorted(model.versions, key=lambda number: (number == model.default, version_key(number)))
    for number in numbers:
        await unregister(registry, name, number)


def model_statistics(registry: Registry, name: str | None, number: str | None) -> list[dict[str, Any]]:
    """Counts and times of a version, of all versions of a model, or of all models.

    Successes are the requests that a worker has answered, errors of the handler among them. A request's
    input and output are no times of their own here.

    Raises:
        ModelNotFound, ModelVersionNotFound: there is no such version.
    """
    if name is None:
        found = registry.versions()
    elif number is None:
        found = list(registry.model(name).versions.values())
    else:
        found = [registry.find(name, number)]
    return [_statistics(registry, version) for version in found]


def _statistics(registry: Registry, version: ModelVersion) -> dict[str, Any]:
    name, number, counted = version.model.name, version.model.version, version.statistics
    queue, inference = _duration(counted.queue_s), _duration(counted.inference_s)
    none = {"count": 0, "ns": 0}
    return {
        "name": name,
        "version": number,
        "last_inference": _last_inference(registry, name, number),
        "inference_count": counted.completed,
        "execution_count": sum(counted.batch_rows.counts),
        "inference_stats": {
            "success": {"count": counted.completed, "ns": queue["ns"] + inference["ns"]},
            "fail": {"count": counted.failed + counted.expired + counted.rejected, "ns": 0},
            "queue": queue,
            "compute_input": none,
            "compute_infer": inference,
            "compute_output": none,
            "cache_hit": none,
            "cache_miss": none,
        },
        "batch_stats": [],
    }


def _duration(seconds: Histogram) -> dict[str, int]:
    return {"count": sum(seconds.counts), "ns": int(seconds.total * 1e9)}


def _last_inference(registry: Registry, name: str, number: str) -> int:
    """Milliseconds from 1970 to the last answer; 0 without one."""
    model = registry.model(name)
    asked = [number, "default"] if number == model.default else [number]
    last = max((model.routes[route].answered_at for route in asked if route in model.routes), default=0.0)
    return int((time.time() - time.monotonic() + last) * 1000) if last else 0


def model_config(registry: Registry, name: str, number: str | None) -> dict[str, Any]:
    """A model's configuration, as far as Triton's has a word for it.

    `max_batch_size` is 0, which says that shapes have their batch dimension: those of metadata do.

    Raises:
        ModelNotFound, ModelVersionNotFound, ServiceUnavailable: as `model_metadata`.
    """
    metadata, version = model_metadata(registry, name, number), registry.find(name, number)
    on_gpu = any(worker.spec.load.gpu is not None for worker in version.pool.workers)
    return {
        "name": name,
        "platform": metadata["platform"],
        "backend": "torchport",
        "max_batch_size": 0,
        "input": _tensors(metadata["inputs"]),
        "output": _tensors(metadata["outputs"]),
        "instance_group": [
            {"name": MAIN_GRAPH, "kind": "KIND_GPU" if on_gpu else "KIND_CPU", "count": version.pool.wanted}
        ],
    }


def _tensors(described: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"name": each["name"], "data_type": f"TYPE_{each['datatype']}", "dims": each["shape"]}
        for each in described
    ]
