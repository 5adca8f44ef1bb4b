"""Starts what is measured, each on a free port of the loopback address, and stops it.

with torchport_serve(archive, folder, batchSize=32) as server:
    ask(server.question(b"[4.0]"))
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from bench.archives import serving
from bench.errors import BenchmarkError
from bench.load import Question, until_answered
from torchport.client import Client
from torchport.store.folders import Store
from torchport.targets import torchport_serve as server_process
from torchport.targets import torchserve
from torchport.targets.torchserve_setup import Ports

HERE = Path(__file__).parent
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
ARGUMENTS = ("--ncs",)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A contender that runs. `url` is where it takes requests; `client` is there for what speaks
    TorchServe's API."""

    url: str
    pid: int
    client: Client | None = None

    def question(self, body: bytes, content_type: str = "application/json") -> Question:
        return Question(url=self.url, body=body, content_type=content_type)

    def worker_pids(self, model: str) -> list[int]:
        """The processes that run a model."""
        if self.client is None:
            return []
        return [worker["pid"] for entry in self.client.describe(model) for worker in entry["workers"]]


class Start(Protocol):
    """Starts a contender: one of the functions below, its settings bound by `functools.partial`."""

    def __call__(self, *, port: int = 0) -> AbstractContextManager[Server]: ...


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@contextlib.contextmanager
def torchport_serve(
    archive: Path,
    folder: Path,
    *,
    port: int = 0,
    settings: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    **keys: int,
) -> Iterator[Server]:
    """`torchport serve` with one archive; `keys` are those of its `model-config.yaml`."""
    store, name = _store(archive, folder, keys)
    address = {"inference_address": f"http://127.0.0.1:{port}"}
    run = server_process.start(
        store,
        folder / "run",
        settings={**address, **(settings or {})},
        environment=environment,
        arguments=ARGUMENTS,
    )
    with run as server, server.client(timeout=120.0) as client:
        url = f"{server.urls['inference']}/predictions/{name}"
        yield Server(url=url, pid=server.pid, client=client)


@contextlib.contextmanager
def torchserve_server(
    archive: Path,
    folder: Path,
    *,
    port: int = 0,
    environment: Mapping[str, str] | None = None,
    **keys: int,
) -> Iterator[Server]:
    """TorchServe with one archive."""
    store, name = _store(archive, folder, keys)
    ports = Ports.free() if port == 0 else replace(Ports.free(), inference=port)
    with (
        torchserve.start(store, folder / "run", ports=ports, environment=environment) as server,
        server.client(timeout=120.0) as client,
    ):
        url = f"http://127.0.0.1:{ports.inference}/predictions/{name}"
        yield Server(url=url, pid=server.pid, client=client)


@contextlib.contextmanager
def mosec_server(model: Path, *, port: int = 0, batch_size: int, wait_ms: int) -> Iterator[Server]:
    """mosec with the linear model."""
    port = port or free_port()
    folder = tempfile.mkdtemp(prefix="mosec-")
    command = [sys.executable, str(HERE / "mosec_linear.py"), "--address", "127.0.0.1", "--port", str(port)]
    command += ["--path", f"{folder}/sockets", "--log-level", "error"]
    variables = {"MODEL": str(model.resolve()), "BATCH_SIZE": str(batch_size), "WAIT_MS": str(wait_ms)}
    try:
        with _process(command, variables, f"http://127.0.0.1:{port}/inference", b"[4.0]") as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def bare_uvicorn(*, port: int = 0) -> Iterator[Server]:
    """uvicorn alone, answering a constant."""
    port = port or free_port()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "constant_app:answer"]
    command += ["--loop", "uvloop", "--http", "httptools", "--lifespan", "off", "--no-access-log"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    with _process(command, {}, f"http://127.0.0.1:{port}/", b"[4.0]") as server:
        yield server


@contextlib.contextmanager
def _process(command: list[str], variables: Mapping[str, str], url: str, body: bytes) -> Iterator[Server]:
    """A server that is a command, ready once it answers `body`; its children go with it."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            server = Server(url=url, pid=process.pid)
            try:
                until_answered(server.question(body), READY_TIMEOUT_S)
            except BenchmarkError as err:
                log.seek(0)
                text = log.read().decode("utf-8", "replace")[-1000:]
                raise BenchmarkError(f"{err}\n{' '.join(command)} wrote:\n{text}") from err
            yield server
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _store(archive: Path, folder: Path, keys: Mapping[str, int]) -> tuple[Store, str]:
    """A store that holds this archive only; the model's name."""
    shutil.rmtree(folder, ignore_errors=True)
    return Store(serving(archive, folder / "store", **keys).parent), archive.name.rpartition("-")[0]
