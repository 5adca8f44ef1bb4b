"""Changes of a server's models: registering, choosing the default version, removing.

    await registry.register(Registration(url="linear-1.0.mar", initial_workers=1))
    registry.find("linear")              # its default version

The states that a version goes through are in `life.py`.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from torchport.server.dispatch.host import SharedHosts
from torchport.server.dispatch.own_thread import in_own_thread
from torchport.server.errors import (
    Conflict,
    InternalError,
    InvalidModelVersion,
    ModelVersionNotFound,
    ServiceUnavailable,
)
from torchport.server.models.known_archives import KnownArchives
from torchport.server.models.new_version import settings_of_new
from torchport.server.models.registered import RegisteredModels
from torchport.server.models.registration import Model, Outcome, Progress, Registration
from torchport.server.models.statistics import ModelStatistics, RouteStatistics
from torchport.server.models.unpacked import UnpackedModel
from torchport.server.models.unpacking import unpack
from torchport.server.models.version import ModelVersion
from torchport.server.models.work_folder import WorkFolder
from torchport.server.models.worker_spec import WorkerDefaults
from torchport.server.settings.settings import ServerSettings
from torchport.server.wire import MetricValue
from torchport.store.folders import version_key

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


async def _remove_folder(folder: Path) -> None:
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _nothing_to_record() -> None:
    """Return at once: there are no snapshots."""


class Registry(RegisteredModels):
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
        work: WorkFolder | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.routes: dict[str, dict[str, RouteStatistics]] = {}
        self.statistics: dict[tuple[str, str], ModelStatistics] = {}
        """Statistics by model and version. Those of removed versions stay: counters never decrease."""
        self.unrestored: dict[str, dict[str, dict[str, Any]]] = {}
        """Snapshot entries that failed to load, by model and version; the next snapshot keeps them."""
        self.known = KnownArchives()
        self.reloading = asyncio.Lock()
        """Held while the models of the start, or news of the store, are registered."""
        self._worker_defaults = WorkerDefaults.of(settings, gpus)
        self.changed, self._samples_taken = changed, samples_taken
        self.recorded = recorded
        """Returns when the last change is where a snapshot keeps it."""
        self._work = work or WorkFolder()
        self._hosts = SharedHosts()
        self._changes: set[asyncio.Task[Any]] = set()
        """Changes that have begun: they go on to their end, even if the one who asked leaves."""
        self._is_closed = False

    def _taken_gpus(self) -> list[int]:
        return [gpu for version in self.serving() for gpu in version.gpus]

    async def register(self, asked: Registration) -> Outcome:
        """Load an archive and start its workers.

        With `synchronous` it returns when they are ready. A version whose workers do not start is removed
        again.

        Raises:
            ApiError: the archive is missing or refused, the version is registered already, or its workers
                did not start; then the message has the handler's traceback.
            Conflict: the version was unregistered while its workers started.
        """
        return await self._to_its_end(self._register(asked))

    async def _register(self, asked: Registration) -> Outcome:
        unpacked = await self._unpack(asked)
        try:
            version = self._add(unpacked, asked)
        except BaseException:
            await _remove_folder(unpacked.folder)
            raise
        self.changed()
        name, number, workers = unpacked.name, unpacked.version, version.settings.min_workers
        message = f'Model "{name}" Version: {number} registered with {workers} initial workers'
        if workers == 0:
            message = f"{message}. Use scale workers API to add workers for the model."
            return Outcome(message=message, version=version)
        version.pool.scale(workers)
        if not asked.synchronous:
            return Outcome(message="Processing worker updates...", progress=Progress.STARTED, version=version)
        # Another request may scale it meanwhile: it has started once it has the workers that are wanted then.
        if await version.pool.wait_ready(None, version.settings.startup_timeout + 5):
            self._require_registered(version)
            return Outcome(message=message, version=version)
        failure = version.pool.failure
        self._require_registered(version)
        await self._remove(version)
        raise InternalError(f"Failed to start workers for model {name} version: {number}\n{failure}".strip())

    async def _unpack(self, asked: Registration) -> UnpackedModel:
        return await in_own_thread(
            lambda: unpack(
                asked.url, self.settings, self._work.path, name=asked.model_name, handler=asked.handler
            )
        )

    async def _to_its_end(self, change: Coroutine[Any, Any, _T]) -> _T:
        """Make a change in a task of its own: it owns a folder or workers until it has ended."""
        task = asyncio.get_running_loop().create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    def _require_registered(self, version: ModelVersion) -> None:
        if not self.has(version):
            name, number = version.model.name, version.model.version
            raise Conflict(f'Model "{name}" Version: {number} was unregistered while its workers started')

    async def replace(self, old: ModelVersion) -> None:
        """Serve a version from its archive as it is now, with as many workers as before.

        The old one gets the requests until the new one is warm, and answers what waits for it then.

        Raises:
            ApiError: the archive is refused, is of another model or version, or its workers did not start;
                the old one stays.
            Conflict: the version was removed meanwhile.
        """
        await self._to_its_end(self._replace(old))

    async def _replace(self, old: ModelVersion) -> None:
        name, number = old.model.name, old.model.version
        handler = old.model.handler if old.model.handler_given else None
        workers = old.settings.min_workers
        asked = Registration(url=old.model.url, model_name=name, handler=handler, initial_workers=workers)
        unpacked = await self._unpack(asked)
        try:
            if unpacked.version != number:
                raise Conflict(f"{asked.url} is version {unpacked.version} of {name} now, and was {number}")
            self._require_current(old)
            # Both are made in one step of the event loop: no request sees the one in the other's place.
            del self.models[name].versions[number]
            try:
                new = self._add(unpacked, asked)
            finally:
                self.models[name].versions[number] = old
        except BaseException:
            await _remove_folder(unpacked.folder)
            raise
        self._leaving.add(new)  # The end of the server is its end, too.
        gone = new
        try:
            workers = old.settings.min_workers
            new.scale(workers, old.settings.max_workers)
            if not await new.pool.wait_ready(workers, new.settings.startup_timeout + 5):
                raise InternalError(
                    f"Failed to start workers for {name} {number}\n{new.pool.failure}".strip()
                )
            self._require_current(old)
            # Somebody may have scaled the old one meanwhile.
            new.scale(old.settings.min_workers, old.settings.max_workers)
            self.models[name].versions[number], gone = new, old
            self._leaving.discard(new)
            self._leaving.add(old)
            self.changed()
        finally:
            await self._end(gone)

    def _require_current(self, version: ModelVersion) -> None:
        if not self.has(version):
            raise Conflict(f"{version.model.name} {version.model.version} was removed meanwhile")

    def _add(self, unpacked: Any, asked: Registration) -> ModelVersion:
        name, number = unpacked.name, unpacked.version
        if self._is_closed:
            raise ServiceUnavailable("the server is ending")
        model = self.models.get(name)
        if model is not None and number in model.versions:
            raise Conflict(f"Model version {number} is already registered for model {name}")
        planned = sum(version.planned_bytes for version in self.versions())
        settings, choice = settings_of_new(
            unpacked, asked, self.settings, gpus=self._worker_defaults.gpus, planned=planned
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
            workers_chosen=choice is not None,
        )
        model = self.models.setdefault(name, Model(self.routes.setdefault(name, {})))
        model.versions[number] = version
        model.default = model.default or number
        self.expected.registered(name, number)
        self._restored(name, number)
        return version

    def _restored(self, name: str, number: str) -> None:
        """Forget a snapshot's entry: the version is there, and goes when it is unregistered."""
        entries = self.unrestored.get(name, {})
        if entries.pop(number, None) is not None and not entries:
            del self.unrestored[name]

    async def unregister(self, name: str, version: str | None) -> None:
        """Remove a version, the default one if none is named, after it has answered its waiting requests.

        Raises:
            ModelNotFound, ModelVersionNotFound: there is no such version.
            InvalidModelVersion: it is the default one, and there are others.
        """
        found = self.find(name, version)
        model = self.models[name]
        if found is model.versions[model.default] and len(model.versions) > 1:
            raise InvalidModelVersion(f"Cannot remove default version for model {name}")
        self._was_emptied = len(self.versions()) == 1
        await self._remove(found)

    async def set_default(self, name: str, number: str) -> None:
        """Make a version the default one, as soon as it is ready. The last request chooses.

        Raises:
            ModelNotFound, ModelVersionNotFound: there is no such version, or no more.
            Conflict: another request has chosen meanwhile.
            InternalError: its workers did not start; the default stays what it was.
        """
        version, model = self.find(name, number), self.models[name]
        model.choice = choice = object()
        if version.pool.wanted and not version.pool.ready and model.default != number:
            # A little longer than a worker may take: then the reason is there.
            await version.pool.wait_ready(1, version.settings.startup_timeout + 5)
            if not self.has(version):
                raise ModelVersionNotFound(name, number)
            if model.choice is not choice:
                raise Conflict(f'Another request has chosen the default version of model "{name}" meanwhile')
            if version.pool.wanted and not version.pool.ready:
                raise InternalError(
                    f"The default version of model {name} stays {model.default}: failed to start workers for "
                    f"version: {number}\n{version.pool.failure}".strip()
                )
        model.default = number
        self.changed()

    async def _remove(self, version: ModelVersion) -> None:
        """Take a registered version out, before anything else happens, and end it."""
        name, number = version.model.name, version.model.version
        model = self.models[name]
        del model.versions[number]
        if not model.versions:
            del self.models[name]
        elif model.default == number:
            model.default = max(model.versions, key=version_key)
        self._leaving.add(version)
        self.changed()
        await self._to_its_end(self._end(version))

    async def _end(self, version: ModelVersion) -> None:
        try:
            await version.close(self.settings.unregister_model_timeout)
        finally:
            self._leaving.discard(version)
            await _remove_folder(version.model.folder)

    async def close(self, grace: float) -> None:
        """Answer the waiting requests, stop every worker, remove the unpacked archives.

        A registration that is under way is refused when its archive has been unpacked.
        """
        self._is_closed = True
        await asyncio.gather(*(version.close(grace) for version in self.serving()))
        self._work.remove()
