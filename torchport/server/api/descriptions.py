"""Models in the management APIs' JSON: TorchServe's names, in TorchServe's order."""

from __future__ import annotations

import json
from typing import Any

from torchport.server.api.base import Reply
from torchport.server.dispatch.worker import State, WorkerProcess
from torchport.server.models.management import Description, ModelPage
from torchport.server.models.registry import Registry


def page_json(page: ModelPage) -> dict[str, Any]:
    """A page of the list of models."""
    token = {} if page.next_page_token is None else {"nextPageToken": str(page.next_page_token)}
    return {**token, "models": [{"modelName": name, "modelUrl": url} for name, url in page.urls.items()]}


def description_json(description: Description) -> dict[str, Any]:
    """Settings, workers and queue of a version, and its handler's own description.

    `lastFailure`, the traceback of a worker that could not load its model or died, is not TorchServe's.
    """
    version = description.version
    model, settings = version.model, version.settings
    on_gpu = any(worker.spec.load.gpu is not None for worker in version.pool.workers)
    described: dict[str, Any] = {
        "modelName": model.name,
        "modelVersion": model.version,
        "modelUrl": model.url,
        "runtime": model.runtime,
        **settings.to_json(),
        "maxRetryTimeoutInSec": settings.max_retry_timeout,
        "clientTimeoutInMills": settings.client_timeout_ms,
        "parallelType": "",
        "parallelLevel": 0,
        "deviceType": settings.device_type or ("gpu" if on_gpu else "cpu"),
        "continuousBatching": False,
        "useJobTicket": False,
        "useVenv": False,
        "stateful": False,
        "sequenceMaxIdleMSec": 0,
        "sequenceTimeoutMSec": 0,
        "maxNumSequence": 0,
        "maxSequenceJobQueueSize": 0,
        "loadedAtStartup": version.loaded_at_startup,
        "workers": [_worker_json(worker) for worker in version.pool.workers],
        "jobQueueStatus": {
            "remainingCapacity": max(0, version.queue.limit - len(version.queue)),
            "pendingRequests": len(version.queue),
        },
    }
    if settings.device_ids:
        described["deviceIds"] = list(settings.device_ids)
    if version.pool.failure:
        described["lastFailure"] = version.pool.failure
    if description.handler_answer:
        described["customizedMetadata"] = _metadata(description.handler_answer)
    return described


def model_ready_reply(registry: Registry, name: str) -> Reply:
    """Whether a model is ready, for KServe's probe, which looks at the status: 503 until it is.

    A model without workers that waits for nothing is 200 and not ready, as on TorchServe.

    Raises:
        ModelNotFound: there is no such model.
        ServiceUnavailable, ModelRefused: it is being loaded, or cannot be.
    """
    version = registry.find(name)
    version.require_workers()
    return Reply.of_json({"name": name, "ready": bool(version.pool.ready)})


def _metadata(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError:
        return answer.decode("utf-8", "replace")


def _worker_json(worker: WorkerProcess) -> dict[str, Any]:
    """One worker. `memoryUsage` is in bytes."""
    gpu = worker.spec.load.gpu
    return {
        "id": worker.id,
        "startTime": worker.started_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "status": "READY" if worker.state in (State.READY, State.BUSY) else "UNLOADING",
        "memoryUsage": worker.resident_bytes(),
        "pid": worker.pid,
        "gpu": gpu is not None,
        "gpuUsage": "N/A" if gpu is None else f"gpuId::{gpu}",
    }
