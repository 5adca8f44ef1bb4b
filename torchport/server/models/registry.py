"""The models of a server: registers, finds, scales and removes versions.

    await registry.register(Registration(url="linear-1.0.mar", initial_workers=1))
    registry.find("linear")              # its default version

A version that is made the default takes over once it is ready. One that is removed first answers its
waiting requests.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from torchport.server.dispatch.host import SharedHosts
from torchport.server.errors import (
    ApiError,
    Conflict,
    InternalError,
    InvalidModelVersion,
    InvalidRequest,
    ModelNotFound,
    ModelVersionNotFound,
)
from torchport.server.models.registration import Model, Registration
from torchport.server.models.settings import model_settings
from torchport.server.models.statistics import ModelStatistics, RouteStatistics
from torchport.server.models.unpacking import unpack
from torchport.server.models.version import ModelVersion
from torchport.server.models.work_folder import WorkFolder
from torchport.server.settings.settings import ServerSettings
from torchport.server.wire import MetricValue
from torchport.store.folders import version_key
from torchport_runtime.options import available_cores

logger = logging.getLogger(__name__)


class Registry:
    """All models of a server.

    `changed` is called when the content of a snapshot would change. Everything runs on one event loop,
    except that archives are read and unpacked in its threads.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        gpus: int = 0,
        changed: Callable[[], None] = lambda: None,
        samples_taken: Callable[[ModelVersion, list[MetricValue]], None] = lambda version, samples: None,
    ) -> None:
        self.settings = settings
        self.models: dict[str, Model] = {}
        self.routes: dict[str, dict[str, RouteStatistics]] = {}
        self.statistics: dict[tuple[str, str], ModelStatistics] = {}
        """Statistics by model and version, removed ones included, because a counter must not run
        backwards."""
        self.failures: dict[str, str] = {}
        """Archives that failed to load when the server started, with the reason."""
        self.draining = False
        """Whether the server is ending: health checks fail then, requests are still answered."""
        self._was_emptied = False
        self.unrestored: dict[str, dict[str, dict[str, Any]]] = {}
        """A snapshot's entries that could not be restored, by model and version; kept for the next
        snapshot."""
        self._gpus, self._changed, self._samples_taken = gpus, changed, samples_taken
        self._work = WorkFolder()
        self._hosts = SharedHosts()
        self._locks: dict[str, asyncio.Lock] = {}
        self._leaving: set[ModelVersion] = set()

    @property
    def default_workers(self) -> int:
        """Workers of a model of the start whose config names no number.

        As on TorchServe: one for each GPU, or else for each core.
        """
        return self.settings.default_workers_per_model or self._gpus or available_cores()

    # Finding.

    def find(self, name: str, version: str | None = None) -> ModelVersion:
        """Find a version; the default one if none is named.

        Raises:
            ModelNotFound, ModelVersionNotFound: the model or the version is missing.
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
            ModelNotFound: the model is missing.
        """
        if name not in self.models:
            raise ModelNotFound(name)
        return self.models[name]

    def versions(self) -> Iterator[ModelVersion]:
        """Every version of every model."""
        for model in self.models.values():
            yield from model.versions.values()

    def serving(self) -> set[ModelVersion]:
        """Every version, including those that are being removed."""
        return {*self.versions(), *self._leaving}

    def _taken_gpus(self) -> list[int]:
        return [gpu for version in self.serving() for gpu in version.gpus]

    @property
    def is_healthy(self) -> bool:
        """Whether every default version has its minimum of workers.

        False if all models of the start have failed to load.
        """
        return not self._all_failed and all(
            len(default.pool.ready) >= default.settings.min_workers
            for default in (model.versions[model.default] for model in self.models.values())
        )

    @property
    def is_ready(self) -> bool:
        """Whether every default version can answer.

        False while the server is ending, or if all models of the start have failed to load.
        """
        if self.draining or self._all_failed:
            return False
        return all(model.versions[model.default].is_ready for model in self.models.values())

    @property
    def _all_failed(self) -> bool:
        """Whether all models of the start have failed to load.

        An orchestrator must not send requests to such a server. A server whose models were removed by the
        API is not meant.
        """
        return bool(self.failures) and not self.models and not self._was_emptied

    # Changing.

    async def register(self, asked: Registration) -> tuple[ModelVersion, str]:
        """Load an archive; return its version and a status text.

        With `synchronous`, it returns once the workers are ready; if they do not start, the version is
        removed again.

        Raises:
            ApiError: the archive is missing or refused, the version is registered already, or its workers did
                not start; the message then has the handler's traceback.
        """
        loop = asyncio.get_running_loop()
        unpacked = await loop.run_in_executor(
            None,
            lambda: unpack(
                asked.url, self.settings, self._work.path, name=asked.model_name, handler=asked.handler
            ),
        )
        name, number = unpacked.name, unpacked.version
        try:
            async with self._lock(name):
                version = self._add(unpacked, asked)
        except ApiError:
            shutil.rmtree(unpacked.folder, ignore_errors=True)
            raise
        workers = version.settings.min_workers
        said = f'Model "{name}" Version: {number} registered with {workers} initial workers'
        if workers == 0:
            self._changed()
            return version, f"{said}. Use scale workers API to add workers for the model."
        version.pool.scale(workers)
        if not asked.synchronous:
            self._changed()
            return version, "Processing worker updates..."
        if not await version.pool.wait_ready(workers, version.settings.startup_timeout + 5):
            failure = version.pool.failure
            async with self._lock(name):
                await self._remove(version)
            raise InternalError(
                f"Failed to start workers for model {name} version: {number}\n{failure}".strip()
            )
        self._changed()
        return version, said

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
            gpus=self._gpus,
            taken_gpus=self._taken_gpus,
            hidden_environment=self.settings.blacklist_env_vars,
            limit_max_image_pixels=self.settings.limit_max_image_pixels,
            decode_input=self.settings.decode_input_request,
            samples_taken=self._samples_taken,
            loaded_at_startup=asked.at_startup,
        )
        model = self.models.setdefault(name, Model(self.routes.setdefault(name, {})))
        model.versions[number] = version
        model.default = model.default or number
        return version

    async def scale(
        self,
        name: str,
        version: str | None,
        least: int,
        most: int,
        *,
        synchronous: bool = False,
        timeout: float | None = None,
    ) -> tuple[int, str]:
        """Change the number of workers; return HTTP status and status text.

        Raises:
            InvalidRequest: `most` is less than `least`, or `least` is negative.
            ModelNotFound, ModelVersionNotFound: the model or the version is missing.
            InternalError: the workers did not start.
        """
        if most < least:
            raise InvalidRequest("max_worker cannot be less than min_worker.")
        if least < 0:
            raise InvalidRequest(f"min_worker={least}: at least 0 is expected")
        found = self.find(name, version)
        found.scale(least, most)
        self._changed()
        if not synchronous:
            return 202, "Processing worker updates..."
        limit = found.settings.startup_timeout + 5 if timeout is None else timeout
        if await found.pool.wait_ready(least, limit):
            said = f"Workers scaled to {least} for model: {name}"
            return 200, f"{said}, version: {version}" if version else said
        if found.pool.failed_starts:
            raise InternalError(
                f"Failed to start workers for model {name} version: {version}\n{found.pool.failure}".strip()
            )
        return 206, "Workers scaling in progress..."

    async def set_default(self, name: str, version: str) -> str:
        """Make a version the default; return a status text.

        Requests that name no version reach the default. The call waits until the version is ready, for its
        `startup_timeout` at most.

        Raises:
            ModelNotFound, ModelVersionNotFound: the model or the version is missing.
        """
        model = self.model(name)
        found = model.versions.get(version)
        if found is None:
            raise ModelVersionNotFound(name, version)
        if found.pool.wanted and not found.pool.ready:
            await found.pool.wait_ready(1, found.settings.startup_timeout)
        if model.versions.get(version) is not found:
            raise ModelVersionNotFound(name, version)
        model.default = version
        self._changed()
        return f'Default version successfully updated for model "{name}" to "{version}"'

    async def unregister(self, name: str, version: str | None) -> str:
        """Remove a version once its waiting requests have been answered.

        Without a `version`, the default one is removed.

        Raises:
            ModelNotFound, ModelVersionNotFound: the model or the version is missing.
            InvalidModelVersion: the version is the default one, and others exist.
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
        self._changed()
        return f'Model "{name}" unregistered'

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
        """Answer waiting requests, end all workers, delete the unpacked archives."""
        await asyncio.gather(*(version.close(grace) for version in self.serving()))
        self._work.remove()
