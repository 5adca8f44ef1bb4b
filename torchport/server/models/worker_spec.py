"""How a worker of a model version is started: its threads, its device, and the model that it loads.

gpu = next_gpu(settings, defaults, lambda: [0])          # 1, of two devices
worker_spec(model, settings, defaults, workers=2, gpu=gpu)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torchport.server.dispatch.worker import WorkerSpec
from torchport.server.models.restoring import restore
from torchport.server.models.settings import ModelSettings
from torchport.server.models.unpacked import UnpackedModel
from torchport.server.settings.metrics_config import declared_metrics
from torchport.server.settings.settings import ServerSettings
from torchport.server.wire import DeclaredMetric, Load
from torchport_runtime.cores import available_cores


@dataclass(frozen=True, kw_only=True)
class WorkerDefaults:
    """Settings of the server that hold for the workers of every model.

    `gpus` is the number of devices. Workers do not get the environment variables whose names match
    `hidden_environment`, a regular expression. `max_response_size` is in bytes; 0: without limit. `metrics`
    are those that handlers find declared.
    `restore` unpacks what is missing of a model's folder.
    """

    gpus: int = 0
    hidden_environment: str = ""
    limit_max_image_pixels: bool = True
    decode_input: bool = True
    max_response_size: int = 0
    metrics: Sequence[DeclaredMetric] = ()
    restore: Callable[[UnpackedModel], None] = lambda model: None

    @classmethod
    def of(cls, server: ServerSettings, gpus: int) -> WorkerDefaults:
        """The defaults of a server with this number of devices.

        Raises:
            ServerError: the `metrics_config` cannot be read.
        """
        return cls(
            gpus=gpus,
            hidden_environment=server.blacklist_env_vars,
            limit_max_image_pixels=server.limit_max_image_pixels,
            decode_input=server.decode_input_request,
            max_response_size=server.max_response_size,
            metrics=declared_metrics(server.metrics_config),
            restore=partial(restore, settings=server),
        )


def worker_spec(
    model: UnpackedModel, settings: ModelSettings, defaults: WorkerDefaults, *, workers: int, gpu: int | None
) -> WorkerSpec:
    """The spec of one worker among `workers`, which share the cores."""
    share = settings.shared_worker
    threads = str(model.thread_count or max(1, available_cores() // (1 if share else workers)))
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if "TORCHPORT_THREADS" not in os.environ and not model.thread_count:
        environment["TORCHPORT_THREADS"] = threads
    return WorkerSpec(
        load=Load(
            model=model.name,
            version=model.version,
            folder=str(model.folder),
            handler=model.handler,
            envelope=model.envelope,
            batch_size=settings.batch_size,
            gpu=gpu,
            limit_max_image_pixels=defaults.limit_max_image_pixels,
            decode_input=defaults.decode_input,
            max_response_size=defaults.max_response_size,
            metrics=list(defaults.metrics),
        ),
        startup_timeout=settings.startup_timeout,
        response_timeout=settings.response_timeout,
        environment=environment,
        hidden=defaults.hidden_environment,
        share=share,
        prepare=partial(defaults.restore, model),
    )


def next_gpu(
    settings: ModelSettings, defaults: WorkerDefaults, taken_gpus: Callable[[], list[int]]
) -> int | None:
    """The device with the fewest workers, among those that the model config names, if it names any.

    So a worker that replaces a dead one takes its device, too. `taken_gpus` gives the devices of all workers
    of the server, one entry for each worker. The result is None for a worker on the CPU.
    """
    if not defaults.gpus or settings.device_type == "cpu":
        return None
    return min(settings.device_ids or range(defaults.gpus), key=taken_gpus().count)
