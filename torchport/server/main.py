"""Runs a server from start to shutdown.

    run(settings, run_folder=Path(".run/serve-8080"), snapshots=True)

On SIGTERM or SIGINT the health check turns 503, accepted requests are answered, and the exit code is 0. A
second signal ends the server at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchport.errors import ServerError
from torchport.server import logs
from torchport.server.api.inference import InferenceApi
from torchport.server.api.management import ManagementApi
from torchport.server.api.metrics import MetricsApi
from torchport.server.api.prometheus import ServerCollector
from torchport.server.api.routing import by_address
from torchport.server.api.tokens import Access
from torchport.server.api.tracing import Tracing
from torchport.server.http.event_loop import event_loop_factory
from torchport.server.http.server import HttpServer
from torchport.server.http.tls import tls_context
from torchport.server.models.registry import Registry
from torchport.server.models.snapshot import Snapshots, read_last
from torchport.server.models.startup import load_models
from torchport.server.models.statistics import RequestCounts
from torchport.server.models.version import ModelVersion
from torchport.server.settings.address import Address
from torchport.server.settings.settings import ServerSettings
from torchport.server.wire import MetricValue
from torchport.store.files import write_json
from torchport.version import __version__
from torchport_runtime.backends.backend import cuda_device_count

if TYPE_CHECKING:
    from torchport.server.grpc.server import GrpcServers

logger = logging.getLogger(__name__)

LIFELINE = "TORCHPORT_SERVER_LIFELINE"
"""Variable with the number of a file descriptor: the server ends when its other side is closed."""


def run(settings: ServerSettings, *, run_folder: Path, snapshots: bool) -> int:
    """Serve until a signal ends the server; the exit code.

    Raises:
        ServerError: the settings are unsafe or wrong, an address is taken.
    """
    logs.set_up(settings.log_format)
    settings.require_safe()
    if settings.ignored:
        logger.warning("config.properties: not known here, ignored: %s", ", ".join(settings.ignored))
    if snapshots and settings.model_snapshot is None:
        last = read_last(run_folder / "config")
        if last is not None:
            logger.info("models as they were when the server ended (--ncs forgets them)")
            settings = replace(settings, model_snapshot=last)
    _allow_connections(settings)
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        return runner.run(_Server(settings, run_folder, snapshots).run())


def _allow_connections(settings: ServerSettings) -> None:
    """Raise the limit on open files to what the connections need, as far as the system allows."""
    try:
        import resource
    except ImportError:  # Windows has none.
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_connections * len(settings.http_addresses) + 1024
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Server:
    """One server. Its constructor refuses bad settings; nothing has been started then."""

    def __init__(self, settings: ServerSettings, run_folder: Path, snapshots: bool) -> None:
        self.settings, self._run_folder, self._keeps_snapshots = settings, run_folder, snapshots
        self._access = Access(settings)
        self._tls = tls_context(settings)
        self._tracing = Tracing() if settings.opentelemetry else None
        self._counts = counts = RequestCounts()
        gpus = cuda_device_count()
        if settings.number_of_gpu is not None:
            gpus = min(gpus, settings.number_of_gpu)
        self._registry = Registry(
            settings, gpus=gpus, changed=self._save_snapshot, samples_taken=self._add_samples
        )
        self._collector = ServerCollector(
            self._registry, counts, system_metrics=not settings.disable_system_metrics
        )
        self._snapshots = Snapshots(run_folder / "config", self._registry)
        self._inference = InferenceApi(settings, self._access, counts, self._registry, self._tracing)
        self._management = ManagementApi(settings, self._access, counts, self._registry)
        self._metrics = MetricsApi(settings, self._access, counts, self._collector)
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._servers: list[HttpServer] = []
        self._grpc: GrpcServers | None = None
        self._is_restored = False
        """Whether every model of the last snapshot has been registered or has failed."""
        self._record: dict[str, Any] = {"loaded": False, "failures": {}}
        """The content of `server.json`, for the process that started the server."""

    async def run(self) -> int:
        self._listen_to_signals()
        if self._access.enabled:
            logger.info("tokens are on: the keys are in %s", self._access.path)
        try:
            await self._listen()
            loading = asyncio.get_running_loop().create_task(self._load())
            loading.add_done_callback(_tell_failure)
            await self._start_grpc()
            self._announce()
            await self._stop.wait()
            loading.cancel()
        finally:
            await self._end()
        return 0

    async def _load(self) -> None:
        started = time.perf_counter()
        await load_models(self._registry, self.settings)
        self._is_restored = True
        failures = dict(self._registry.failures)
        for version in self._registry.versions():
            await version.pool.wait_ready(version.settings.min_workers, version.settings.startup_timeout)
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
        apis = (self._inference, self._management, self._metrics)
        for address, handle in by_address(self.settings.http_addresses, apis):
            tls = self._tls if address.scheme == "https" else None
            server = HttpServer(handle, address.host, address.port, self.settings, tls)
            try:
                await server.start()
            except OSError as err:
                raise ServerError(
                    f"cannot listen on {address}: {err.strerror or err}: stop what listens there, or choose "
                    "another with --port"
                ) from err
            self._servers.append(server)

    async def _start_grpc(self) -> None:
        if not self.settings.enable_grpc:
            return
        from torchport.server.grpc.server import GrpcServers

        self._grpc = GrpcServers(self.settings, self._access, self._registry, self._counts)
        await self._grpc.start()

    def _announce(self) -> None:
        """Write the addresses into the log and into `server.json`."""
        servers, known = iter(self._servers), dict[Address, str]()
        urls = []
        for address in self.settings.http_addresses:
            if not address.port or address not in known:
                known[address] = next(servers).url
            urls.append(known[address])
        inference, management, metrics = urls
        self._record |= {
            "pid": os.getpid(),
            "version": __version__,
            "inference": inference,
            "management": management,
            "metrics": metrics,
        }
        if self._grpc is not None:
            self._record |= {
                "grpc_inference": self._grpc.inference_port,
                "grpc_management": self._grpc.management_port,
            }
        write_json(self._run_folder / "server.json", self._record)
        logger.info("inference %s, management %s, metrics %s", inference, management, metrics)

    def _save_snapshot(self) -> None:
        # Not before all is there again: a server that is killed meanwhile must not have forgotten the rest.
        if self._keeps_snapshots and self._is_restored and not self._stop.is_set():
            self._snapshots.save()

    def _add_samples(self, version: ModelVersion, samples: list[MetricValue]) -> None:
        self._collector.add_samples(version, samples)

    # The end.

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        if LIFELINE in os.environ:
            descriptor = int(os.environ.pop(LIFELINE))

            def watch() -> None:
                with contextlib.suppress(OSError):
                    os.read(descriptor, 1)
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._signalled, signal.SIGTERM)
                # Should the event loop be stuck, nobody is there any more to end this.
                time.sleep(self.settings.shutdown_timeout + 10)
                os._exit(1)

            threading.Thread(target=watch, name="lifeline", daemon=True).start()

    def _signalled(self, number: int) -> None:
        if self._stop.is_set():
            self._hurry.set()
            return
        logger.info("%s: answering what was taken, then ending", signal.Signals(number).name)
        self._stop.set()

    async def _end(self) -> None:
        """Answer the requests at hand within `shutdown_timeout`, then stop and clean up."""
        self._registry.draining = True
        deadline = time.monotonic() + self.settings.shutdown_timeout
        while not self._hurry.is_set() and time.monotonic() < deadline and self._is_busy():
            await asyncio.sleep(0.02)
        grace = 0.0 if self._hurry.is_set() else max(0.0, deadline - time.monotonic())
        if self._grpc is not None:
            await self._grpc.stop(grace)
        await asyncio.gather(*(server.stop(grace) for server in self._servers))
        await self._registry.close(grace)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        (self._run_folder / "server.json").unlink(missing_ok=True)
        logger.info("ended")

    def _is_busy(self) -> bool:
        return any(version.in_flight or len(version.queue) for version in self._registry.serving())


def _tell_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("the models could not be loaded", exc_info=task.exception())
