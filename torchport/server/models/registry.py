"""The models of a server by name and version: loading, finding and removing them.

    await registry.register(Registration(url="linear-1.0.mar", initial_workers=1))
    registry.find("linear")              # its default version

A version gets requests only once it is ready. A removed one answers its waiting requests first.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from torchport.server.dispatch.host import SharedHosts
from torchport.server.errors import (
    ApiError,
    Conflict,
    InternalError,
    InvalidModelVersion,
    ModelNotFound,
    ModelVersionNotFound,
)
from torchport.server.models.own_thread import in_own_thread
from torchport.server.models.registration import Model, Outcome, Progress, Registration
from torchport.server.models.settings import model_settings
from torchport.server.models.statistics import ModelStatistics, RouteStatistics
from torchport.server.models.unpacking import unpack
from torchport.server.models.version import ModelVersion
from torchport.server.models.work_folder import WorkFolder
from torchport.server.models.worker_spec import WorkerDefaults
from torchport.server.settings.settings import ServerSettings
from torchport.server.wire import MetricValue
from torchport.store.folders import version_key
from torchport_runtime.options import available_cores

logger = logging.getLogger(__name__)


async def _nothing_to_record() -> None:
    """Return at once: there are no snapshots."""


class Registry:
    """All models of a server. `changed` is called after every change that a snapshot records.

    Everything runs on one event loop, but archives are read and unpacked in threads.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        gpus: int = 0,
        changed: Callable[[], None] = lambda: None,
        recorded: Callable[[], Awaitable[None]] = _nothing_to_record,
        samples_taken: Callable[[ModelVersion, list[MetricValue]], None] = lambda version, samples: None,
    ) -> None:
        self.settings = settings
        self.models: dict[str, Model] = {}
        self.routes: dict[str, dict[str, RouteStatistics]] = {}
        self.statistics: dict[tuple[str, str], ModelStatistics] = {}
        """Statistics by model and version. Those of removed versions stay: counters never decrease."""
        self.failures: dict[str, str] = {}
        """Archives that failed to load at startup, with the reason."""
        self.draining = False
        """Whether the server is ending: its health checks fail, and it still answers requests."""
        self._was_emptied = False
        self.unrestored: dict[str, dict[str, dict[str, Any]]] = {}
        """Snapshot entries that failed to load, by model and version; the next snapshot keeps them."""
        self._worker_defaults = WorkerDefaults.of(settings, gpus)
        self.changed, self._samples_taken = changed, samples_taken
        self.recorded = recorded
        """Returns when the last change is where a snapshot keeps it."""
        self._work = WorkFolder()
        self._hosts = SharedHosts()
        self._locks: dict[str, asyncio.Lock] = {}
        self._leaving: set[ModelVersion] = set()

    @property
    def default_workers(self) -> int:
        """Number of workers of a model loaded at startup whose config gives none.

        As on TorchServe, it is one for each device, or for each core without devices.
        """
        return self.settings.default_workers_per_model or self._worker_defaults.gpus or available_cores()

    # Finding.

    def find(self, name: str, version: str | None = None) -> ModelVersion:
        """A version; the default one if none is named.

        Raises:
            ModelNotFound, ModelVersionNotFound: there is no such version.
        """
        model = self.models.get(name)
        if model is None:
            raise ModelNotFound(name)
        found = model.versions.get(version if version else model.default)
        if found is None:
            raise ModelVersionNotFound(name, version or model.default)
        return found

    def model(self, name: str) -> Model:
        """All versions of a model.

        Raises:
            ModelNotFound: there is no such model.
        """
        if name not in self.models:
            raise ModelNotFound(name)
        return self.models[name]

    def versions(self) -> Iterator[ModelVersion]:
        """Every version of every model."""
        for model in self.models.values():
            yield from model.versions.values()

    def serving(self) -> set[ModelVersion]:
        """Every version that may have workers: those being removed are included."""
        return {*self.versions(), *self._leaving}

    def _taken_gpus(self) -> list[int]:
        return [gpu for version in self.serving() for gpu in version.gpus]

    @property
    def is_healthy(self) -> bool:
        """Whether every default version has its minimum of workers, and not all models failed to load."""
        return not self._all_failed and all(
            len(default.pool.ready) >= default.settings.min_workers
            for default in (model.versions[model.default] for model in self.models.values())
        )

    @property
    def is_ready(self) -> bool:
        """Whether every default version can answer, not all models failed to load, and no end has begun."""
        if self.draining or self._all_failed:
            return False
        return all(model.versions[model.default].is_ready for model in self.models.values())

    @property
    def _all_failed(self) -> bool:
        """Whether all models failed to load at startup, and none has been registered since.

        An orchestrator must not send requests to such a server. Removing all models by the API is no
        failure.
        """
        return bool(self.failures) and not self.models and not self._was_emptied

    # Changing.

    async def register(self, asked: Registration) -> Outcome:
        """Load an archive and start its workers.

        With `synchronous` it returns when they are ready. A version whose workers do not start is removed
        again.

        Raises:
            ApiError: the archive is missing or refused, the version is registered already, or its workers
                did not start; then the message has the handler's traceback.
        """
        unpacked = await in_own_thread(
            lambda: unpack(
                asked.url, self.settings, self._work.path, name=asked.model_name, handler=asked.handler
            )
        )
        name, number = unpacked.name, unpacked.version
        try:
            async with self._lock(name):
                version = self._add(unpacked, asked)
        except ApiError:
            shutil.rmtree(unpacked.folder, ignore_errors=True)
            raise
        workers = version.settings.min_workers
        message = f'Model "{name}" Version: {number} registered with {workers} initial workers'
        if workers == 0:
            self.changed()
            return Outcome(message=f"{message}. Use scale workers API to add workers for the model.")
        version.pool.scale(workers)
        if not asked.synchronous:
            self.changed()
            return Outcome(message="Processing worker updates...", progress=Progress.STARTED)
        if not await version.pool.wait_ready(workers, version.settings.startup_timeout + 5):
            failure = version.pool.failure
            async with self._lock(name):
                await self._remove(version)
            raise InternalError(
                f"Failed to start workers for model {name} version: {number}\n{failure}".strip()
            )
        self.changed()
        return Outcome(message=message)

    def _add(self, unpacked: Any, asked: Registration) -> ModelVersion:
        name, number = unpacked.name, unpacked.version
        model = self.models.get(name)
        if model is not None and number in model.versions:
            raise Conflict(f"Model version {number} is already registered for model {name}")
        known = self.settings.models.get(name, {})
        settings = model_settings(
            unpacked.config,
            self.settings,
            asked={
                "batch_size": asked.batch_size,
                "max_batch_delay": asked.max_batch_delay,
                "response_timeout": asked.response_timeout,
                "startup_timeout": asked.startup_timeout,
                "min_workers": asked.initial_workers,
                "max_workers": asked.initial_workers,
            },
            known=known.get(number, {}) if isinstance(known, dict) else {},
        )
        version = ModelVersion(
            unpacked,
            settings,
            self.statistics.setdefault((name, number), ModelStatistics()),
            self._hosts,
            self._worker_defaults,
            taken_gpus=self._taken_gpus,
            samples_taken=self._samples_taken,
            loaded_at_startup=asked.at_startup,
        )
        model = self.models.setdefault(name, Model(self.routes.setdefault(name, {})))
        model.versions[number] = version
        model.default = model.default or number
        return version

    async def unregister(self, name: str, version: str | None) -> None:
        """Remove a version, the default one if none is named, after it has answered its waiting requests.

        Raises:
            ModelNotFound, ModelVersionNotFound: there is no such version.
            InvalidModelVersion: it is the default one, and there are others.
        """
        async with self._lock(name):
            model = self.model(name)
            number = version or model.default
            if number not in model.versions:
                raise ModelVersionNotFound(name, number)
            if number == model.default and len(model.versions) > 1:
                raise InvalidModelVersion(f"Cannot remove default version for model {name}")
            await self._remove(model.versions[number])
        self._was_emptied = not self.models
        self.changed()

    async def _remove(self, version: ModelVersion) -> None:
        name, number = version.model.name, version.model.version
        model = self.models[name]
        # Out of the register first: nothing new comes to it while it finishes.
        del model.versions[number]
        if not model.versions:
            del self.models[name]
        elif model.default == number:
            model.default = max(model.versions, key=version_key)
        self._leaving.add(version)
        try:
            await version.close(self.settings.unregister_model_timeout)
        finally:
            self._leaving.discard(version)
            shutil.rmtree(version.model.folder, ignore_errors=True)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def close(self, grace: float) -> None:
        """Answer the waiting requests, stop every worker, remove the unpacked archives."""
        await asyncio.gather(*(version.close(grace) for version in self.serving()))
        self._work.remove()
