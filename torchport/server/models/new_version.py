"""The settings of a version that is being registered, and who says how many workers it gets.

settings, choice = settings_of_new(unpacked, asked, server, gpus=0, planned=0)
choice                               # None if the registration, the operator or the archive says a number
"""

from __future__ import annotations

import logging

from torchport.server.models.registration import Registration
from torchport.server.models.settings import ModelSettings, model_settings, worker_limit
from torchport.server.models.unpacked import UnpackedModel
from torchport.server.models.worker_count import NUMBERS, WorkerChoice, choose_workers, leaves_workers_open
from torchport.server.settings.settings import ServerSettings

logger = logging.getLogger(__name__)


def settings_of_new(
    unpacked: UnpackedModel, asked: Registration, server: ServerSettings, *, gpus: int, planned: int
) -> tuple[ModelSettings, WorkerChoice | None]:
    """A new version's settings, and the choice of its number of workers if nobody says one.

    Args:
        gpus: number of devices of the server.
        planned: bytes that workers will take which are starting for other models.

    Raises:
        ArchiveRefused: as `model_settings` and `leaves_workers_open`.
    """
    config = dict(unpacked.config)
    is_open = leaves_workers_open(config)
    if is_open:
        config = {key: value for key, value in config.items() if key not in NUMBERS}
    entry = server.models.get(unpacked.name, {})
    known = entry.get(unpacked.version, {}) if isinstance(entry, dict) else {}
    workers = asked.initial_workers
    if workers is None:
        workers = server.default_workers_per_model or None  # 0 is TorchServe's word for its own default.
    if workers is None and not is_open:
        workers = asked.fallback_workers
    registered = {
        "batch_size": asked.batch_size,
        "max_batch_delay": asked.max_batch_delay,
        "response_timeout": asked.response_timeout,
        "startup_timeout": asked.startup_timeout,
        "min_workers": workers,
        "max_workers": workers,
    }
    settings = model_settings(config, server, asked=registered, known=known)
    if workers is not None or "minWorkers" in known or "minWorkers" in config:
        return settings, None
    limit = worker_limit(server, {}, {})
    choice = choose_workers(unpacked, settings, gpus=gpus, limit=limit, planned=planned)
    logger.info(
        "%s %s: %s. minWorkers and maxWorkers in its model-config.yaml, default_workers_per_model or scaling "
        "say another number; torchport tune measures which is best",
        *(unpacked.name, unpacked.version, choice),
        extra={"model": f"{unpacked.name} {unpacked.version}"},
    )
    return settings.with_workers(choice.workers, choice.workers), choice
