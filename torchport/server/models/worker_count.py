"""How many workers a model gets if neither its archive nor the operator says.

    choice = choose_workers(model, settings, gpus=0, limit=128, planned=0)
    choice.workers                       # 2 on two cores
    str(choice)                          # "2 workers, one for each of 2 cores"

On the CPU, one worker with one thread for each core answers more requests than one worker with all cores:
threads of one inference wait for each other, workers do not. Where so many do not fit into the memory there
are fewer, which share the cores. On GPUs there is one for each device, as on TorchServe.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchport.server.errors import ArchiveRefused
from torchport.server.models.memory import available_bytes
from torchport.server.models.settings import ModelSettings
from torchport.server.models.unpacked import UnpackedModel
from torchport_runtime.cores import available_cores
from torchport_runtime.errors import BackendError
from torchport_runtime.options import BackendOptions

KEY, AUTO = "torchport_workers", "auto"
"""What a `model-config.yaml` says to leave the number to the server. TorchServe and older servers do not know
the key and start the one worker of the `minWorkers` beside it."""

NUMBERS = ("minWorkers", "maxWorkers")
"""The keys by which a `model-config.yaml` says a number."""

_MEMORY_SHARE = 0.5
"""Share of the available memory that all workers of a start may plan to take; requests need some, too."""

_ONNX_BYTES, _OTHER_BYTES = 128 << 20, 512 << 20
"""A worker's memory without its model: with ONNX Runtime alone, and with torch, as most other handlers."""

_MODEL_COPIES = 2
"""Memory of a loaded model as a multiple of its files: weights are copied or packed when they are loaded."""


@dataclass(frozen=True, kw_only=True)
class WorkerChoice:
    """A number of workers, and the reason for it."""

    workers: int
    reason: str

    def __str__(self) -> str:
        return f"{self.workers} worker{'s'[: self.workers > 1]}, {self.reason}"


def leaves_workers_open(config: Mapping[str, Any]) -> bool:
    """Whether a `model-config.yaml` says that the server chooses.

    Numbers beside it other than 1 have been put there by somebody, and hold.

    Raises:
        ArchiveRefused: the key has another value than `auto`.
    """
    if KEY not in config:
        return False
    if config[KEY] != AUTO:
        raise ArchiveRefused(
            f"model-config.yaml: {KEY} is {repr(config[KEY])[:80]}: {AUTO} is expected; numbers of workers "
            "are minWorkers and maxWorkers"
        )
    return all(config.get(key, 1) == 1 for key in NUMBERS)


def choose_workers(
    model: UnpackedModel, settings: ModelSettings, *, gpus: int, limit: int, planned: int
) -> WorkerChoice:
    """The number of workers for a model.

    Args:
        gpus: number of devices of the server.
        limit: the most that an archive may start by itself.
        planned: bytes that workers will take which are starting for other models.
    """
    if settings.shared_worker:
        return WorkerChoice(workers=1, reason="because it shares a process")
    options = _options(model)
    devices = _devices(options, settings, gpus)
    if devices:
        number = min(devices, limit)
        return WorkerChoice(workers=number, reason=f"one for each of {devices} GPU{'s'[: devices > 1]}")
    cores, threads = available_cores(), _threads(model)
    wanted, reason = max(1, cores // threads), f"one for each of {cores} core{'s'[: cores > 1]}"
    if threads > 1:
        reason = f"of {threads} threads each on {cores} cores"
    if limit < wanted:
        wanted, reason = limit, "as many as an archive may start by itself (max_workers_of_archive)"
    each, free = worker_bytes(model), available_bytes()
    if free is not None:
        fitting = max(1, int(max(0, _MEMORY_SHARE * free - planned)) // each)
        if fitting < wanted:
            text = f"because each may take {each / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are available"
            return WorkerChoice(workers=fitting, reason=text)
    return WorkerChoice(workers=wanted, reason=reason)


def worker_bytes(model: UnpackedModel) -> int:
    """Estimated memory of one worker that has loaded the model."""
    options = _options(model)
    if options is None:
        return _OTHER_BYTES + _MODEL_COPIES * sum(entry.size for entry in model.entries)
    served = [options.artifact_suffix]
    if options.shadowed is not None:
        served.append(options.shadowed.artifact_suffix)
    needed = 0
    for suffix in served:
        own = [e.size for e in model.entries if e.name.partition(".")[2] == suffix.removeprefix(".")]
        needed += (_ONNX_BYTES if suffix.endswith(".onnx") else _OTHER_BYTES) + _MODEL_COPIES * sum(own)
    return needed


def _options(model: UnpackedModel) -> BackendOptions | None:
    """The options that torchport's runtime serves the archive with; None in an archive of other tools."""
    block = model.config.get("torchport")
    if not isinstance(block, Mapping):
        return None
    try:
        return BackendOptions.from_config(block, os.environ)
    except BackendError:
        return None  # Its workers will say what is wrong with it.


def _devices(options: BackendOptions | None, settings: ModelSettings, gpus: int) -> int:
    """Number of GPUs that the model's workers are spread over; 0 on the CPU."""
    if not gpus or settings.device_type == "cpu":
        return 0
    if options is not None and (not options.takes_gpu or options.device == "cpu"):
        return 0
    if options is not None and options.device.startswith("cuda:"):
        return 1
    return len(settings.device_ids) or gpus


def _threads(model: UnpackedModel) -> int:
    """Threads of one worker that the archive or the environment name; 1 if neither does."""
    given = os.environ.get("TORCHPORT_THREADS", "")
    return int(given if given.isdigit() else 0) or model.thread_count or 1
