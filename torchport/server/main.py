"""Runs a server from start to shutdown.

    run(settings, run_folder=Path(".run/serve-8080"), snapshots=True)

On SIGTERM or SIGINT the health check turns 503. The server still listens for `drain_time` seconds, then
answers what it took and ends with exit code 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchport.server import logs
from torchport.server.api.tokens import Access
from torchport.server.http.addresses import require_free
from torchport.server.http.event_loop import event_loop_factory
from torchport.server.http.tls import tls_context
from torchport.server.models.registry import Registry
from torchport.server.models.snapshot import Snapshots, read_last
from torchport.server.models.startup import Start, load_models
from torchport.server.models.statistics import RequestCounts
from torchport.server.models.version import ModelVersion
from torchport.server.models.watching import watch
from torchport.server.models.work_folder import WorkFolder
from torchport.server.settings.settings import ServerSettings
from torchport.server.signals import Signals
from torchport.server.wire import MetricValue
from torchport.store.files import write_json
from torchport.version import __version__
from torchport_runtime.backends.cuda import cuda_device_count

if TYPE_CHECKING:
    from torchport.server.api.tracing import Tracing
    from torchport.server.listeners import Listeners

logger = logging.getLogger(__name__)

WORKERS_END_S = 2.0
"""Seconds that idle workers have to end by themselves when the server ends."""

SNAPSHOT_S = 2.0
"""Seconds for the last snapshot to reach the disk."""

REFUSALS_S = 1.0
"""Seconds for sending the refusals of requests that were not answered in time."""


def run(
    settings: ServerSettings,
    *,
    run_folder: Path,
    snapshots: bool,
    models_named: bool = False,
    notes: Sequence[str] = (),
) -> int:
    """Serve until a signal ends the server; the exit code.

    `models_named` is whether the command line says which models are loaded, whatever a snapshot says.
    `notes` are about what was given; the log begins with them.

    Raises:
        ServerError: the settings are unsafe or wrong, an address is taken.
    """
    logs.set_up(settings.log_format)
    logs.tell_where(settings.access_log)
    settings.require_safe()
    for note in notes:
        logger.warning("%s", note)
    if settings.ignored:
        logger.warning("config.properties: not known here, ignored: %s", ", ".join(settings.ignored))
    work = WorkFolder(run_folder)
    folder = run_folder / "config"
    last = read_last(folder) if snapshots and settings.model_snapshot is None else None
    start = Start(last=last, folder=folder, named=models_named)
    _allow_connections(settings)
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        code = runner.run(_Server(settings, run_folder, snapshots, start, work).run())
        _leave_threads(code)
    return code


def _leave_threads(code: int) -> None:
    """End the process now if there are threads that the interpreter would wait for.

    Nothing depends on them any more, and the inspection of an archive in one of them may take for ever.
    """
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)


def _allow_connections(settings: ServerSettings) -> None:
    """Raise the limit on open files to what the connections need, as far as the system allows."""
    try:
        import resource
    except ImportError:  # Windows has none.
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    addresses = len(settings.http_addresses) + 2 * settings.enable_grpc
    wanted = settings.max_connections * addresses + 1024
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Server:
    """One server. Its constructor refuses bad settings; nothing has been started then."""

    def __init__(
        self, settings: ServerSettings, run_folder: Path, snapshots: bool, start: Start, work: WorkFolder
    ) -> None:
        self.settings, self._run_folder, self._keeps_snapshots = settings, run_folder, snapshots
        self._start = start
        self._access = Access(settings)
        self._tls = tls_context(settings)
        self._tracing = _tracing() if settings.opentelemetry else None
        self._counts = RequestCounts()
        gpus = cuda_device_count()
        if settings.number_of_gpu is not None:
            gpus = min(gpus, settings.number_of_gpu)
        self._registry = Registry(
            settings,
            gpus=gpus,
            changed=self._save_snapshot,
            recorded=self._snapshot_written,
            samples_taken=self._add_samples,
            work=work,
        )
        self._snapshots = Snapshots(run_folder / "config", self._registry)
        self._signals = Signals(begun=self._begin_ending, left=self._remove_record)
        self._threads = ThreadPoolExecutor(thread_name_prefix="server")
        self._is_closing = False
        """Whether models are being removed because the server ends."""
        self._listeners: Listeners | None = None
        """None until the process has imported them: no request can come before."""
        self._loading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._is_restored = False
        """Whether every model of the last snapshot has been registered or has failed."""
        self._record: dict[str, Any] = {"loaded": False, "failures": {}}
        """The content of `server.json`, for the process that started the server."""

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(self._threads)
        self._signals.listen(self.settings.drain_time + self.settings.shutdown_timeout + 10)
        if self._access.enabled:
            logger.info("tokens are on: the keys are in %s", self._access.path)
        try:
            require_free(self.settings.http_addresses)
            # First of all: their workers load the models while this process imports the APIs.
            self._loading = loop.create_task(self._load())
            self._loading.add_done_callback(_tell_failure)
            await self._listen()
            self._announce()
            await self._signals.received.wait()
        finally:
            await self._end()
        return 0

    async def _load(self) -> None:
        started = time.perf_counter()
        await load_models(self._registry, self.settings, self._start)
        self._is_restored = True
        if self.settings.watch_store:
            logger.info("the store %s is watched: what is new in it is served", self.settings.model_store)
            self._watching = asyncio.get_running_loop().create_task(watch(self._registry))
        failures = dict(self._registry.failures)
        for version in self._registry.versions():
            await version.pool.wait_ready(version.least_workers, version.settings.startup_timeout)
        ready = [v for v in self._registry.versions() if v.is_ready]
        names = ", ".join(f"{v.model.name} {v.model.version}" for v in ready) or "none"
        logger.info("ready after %.2f s: %s", time.perf_counter() - started, names)
        for version in self._registry.versions():
            if not version.is_ready:
                failures[f"{version.model.name} {version.model.version}"] = version.pool.failure
        self._record |= {"loaded": True, "failures": failures}
        if "pid" in self._record:
            write_json(self._run_folder / "server.json", self._record)
        self._save_snapshot()
        gc.collect()
        gc.freeze()  # What is there now stays: no collection needs to look at it again.

    async def _listen(self) -> None:
        # In a thread, so that the event loop can start workers meanwhile.
        await asyncio.to_thread(importlib.import_module, "torchport.server.listeners")
        from torchport.server.listeners import Listeners

        self._listeners = Listeners(
            self.settings,
            self._access,
            self._registry,
            self._counts,
            tls=self._tls,
            tracing=self._tracing,
        )
        await self._listeners.listen()

    def _announce(self) -> None:
        """Write the addresses into the log and into `server.json`."""
        assert self._listeners is not None
        addresses = self._listeners.addresses()
        self._record |= {
            "pid": os.getpid(),
            "version": __version__,
            **addresses,
            "store": str(self.settings.model_store.resolve()),
            "watches": self.settings.watch_store,
        }
        write_json(self._run_folder / "server.json", self._record)
        logger.info(
            "inference %s, management %s, metrics %s",
            *(addresses[name] for name in ("inference", "management", "metrics")),
        )

    def _save_snapshot(self) -> None:
        # Not before all is there again: a server that is killed meanwhile must not have forgotten the rest.
        if self._keeps_snapshots and self._is_restored and not self._is_closing:
            self._snapshots.save_soon()

    async def _snapshot_written(self) -> None:
        await self._snapshots.written()

    def _add_samples(self, version: ModelVersion, samples: list[MetricValue]) -> None:
        if self._listeners is not None:
            self._listeners.add_samples(version, samples)

    # The end.

    def _begin_ending(self) -> None:
        """Turn health checks to 503 and let clients go; listen and answer as before."""
        self._registry.draining = True
        if self._listeners is not None:
            self._listeners.begin_ending()

    async def _end(self) -> None:
        """Listen for the drain time, answer what was taken, then stop and clean up."""
        for task in (self._loading, self._watching):
            if task is not None:
                task.cancel()
        self._begin_ending()
        if self._signals.received.is_set():
            # Who sends requests here may not have heard yet that it must not.
            await asyncio.sleep(self.settings.drain_time)
        limit = self.settings.shutdown_timeout
        ending = []
        if self._listeners is not None:
            ending = self._listeners.ending(limit + WORKERS_END_S + REFUSALS_S)
        _, late = await asyncio.wait(ending, timeout=limit) if ending else (set(), set())
        self._is_closing = True
        self._remove_record()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SNAPSHOT_S):
                await self._snapshots.written()
        # Without their workers, requests that are not answered by now are refused.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * WORKERS_END_S):
                await self._registry.close(0.0 if late else WORKERS_END_S)
        if late:
            await asyncio.wait(late, timeout=REFUSALS_S)
        if self._listeners is not None:
            self._listeners.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        self._threads.shutdown(wait=False, cancel_futures=True)
        logger.info("ended")

    def _remove_record(self) -> None:
        (self._run_folder / "server.json").unlink(missing_ok=True)


def _tracing() -> Tracing:
    from torchport.server.api.tracing import Tracing

    return Tracing()


def _tell_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("the models could not be loaded", exc_info=task.exception())
