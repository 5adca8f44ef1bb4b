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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import psutil

from bench.archives import serving
from bench.errors import BenchmarkError
from bench.load import Question, until_answered
from torchport.client import Client
from torchport.store.folders import Store
from torchport.targets import torchport_serve as server_process
from torchport.targets import torchserve
from torchport.targets.torchserve_setup import Ports

APPS = Path(__file__).parent / "apps"
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
LOG_CHARACTERS = 2000
"""Of what a contender wrote, shown where it does not start."""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
ARGUMENTS = ("--ncs",)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A contender that runs. `url` is where it takes requests; `client` is there for what speaks
    TorchServe's API, `grpc` (host and port) for what speaks gRPC."""

    url: str
    pid: int
    client: Client | None = None
    grpc: str = ""

    def question(self, body: bytes, content_type: str = "application/json") -> Question:
        return Question(url=self.url, body=body, content_type=content_type, pid=self.pid)

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
        grpc = f"127.0.0.1:{server.ports['grpc_inference']}" if server.ports else ""
        yield Server(url=url, pid=server.pid, client=client, grpc=grpc)


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
def bare_uvicorn(*, port: int = 0) -> Iterator[Server]:
    """uvicorn alone, answering a constant."""
    port = port or free_port()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(APPS), "constant_app:answer"]
    command += ["--loop", "uvloop", "--http", "httptools", "--lifespan", "off", "--no-access-log"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    with command_server(command, {}, f"http://127.0.0.1:{port}/", b"[4.0]") as server:
        yield server


@contextlib.contextmanager
def constant_grpc() -> Iterator[Server]:
    """grpc.aio alone, answering a constant."""
    port = free_port()
    command = [sys.executable, str(APPS / "constant_grpc.py"), str(port)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            yield Server(url="", pid=process.pid, grpc=f"127.0.0.1:{port}")
        finally:
            process.kill()


@contextlib.contextmanager
def command_server(
    command: Sequence[str], variables: Mapping[str, str], url: str, body: bytes, **more: Any
) -> Iterator[Server]:
    """A server that is a command, ready once it answers; its children go with it."""
    with running(command, variables, Question(url=url, body=body, **more)) as pid:
        yield Server(url=url, pid=pid)


@contextlib.contextmanager
def running(command: Sequence[str], variables: Mapping[str, str], question: Question) -> Iterator[int]:
    """The process of a command that is ready once it answers the question; its children go with it."""
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
            try:
                until_answered(question, READY_TIMEOUT_S, lambda: process.poll() is not None)
            except BenchmarkError as err:
                log.seek(0)
                text = log.read().decode("utf-8", "replace")[-LOG_CHARACTERS:]
                raise BenchmarkError(f"{err}\n{' '.join(command)} wrote:\n{text}") from err
            yield process.pid
        finally:
            # Of all of them before, because children that outlive it are nobody's then.
            children = _children(process.pid)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            process.wait()


def _children(pid: int) -> list[psutil.Process]:
    """All that descend from a process; none where it has ended."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _store(archive: Path, folder: Path, keys: Mapping[str, int]) -> tuple[Store, str]:
    """A store that holds this archive only; the model's name."""
    shutil.rmtree(folder, ignore_errors=True)
    return Store(serving(archive, folder / "store", **keys).parent), archive.name.rpartition("-")[0]
