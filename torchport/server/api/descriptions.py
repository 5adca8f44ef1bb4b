"""Describes model versions for the management API, with TorchServe's names."""

from __future__ import annotations

from typing import Any

from torchport.server.dispatch.worker import State, WorkerProcess
from torchport.server.models.version import ModelVersion


def describe(version: ModelVersion) -> dict[str, Any]:
    """A version's settings, workers and queue.

    `lastFailure`, which TorchServe does not have, is the traceback of a worker that could not load its
    model or died.
    """
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
        "workers": [describe_worker(worker) for worker in version.pool.workers],
        "jobQueueStatus": {
            "remainingCapacity": max(0, version.queue.limit - len(version.queue)),
            "pendingRequests": len(version.queue),
        },
    }
    if settings.device_ids:
        described["deviceIds"] = list(settings.device_ids)
    if version.pool.failure:
        described["lastFailure"] = version.pool.failure
    return described


def describe_worker(worker: WorkerProcess) -> dict[str, Any]:
    """A worker's state; `memoryUsage` is in bytes."""
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
