"""Starts `torchport serve` as a child process, waits until ready, stops it.

    with start(Store(Path("model_store")), run=Path(".run/check")) as server:
        server.client().predict("linear", json=[4.0])

The server ends with the process that started it, after a SIGKILL too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torchport.client import Client
from torchport.errors import RequestError, ServerError
from torchport.properties import read_properties
from torchport.store.files import read_json
from torchport.store.folders import Store

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 70.0

_ANY_PORT = {
    "inference_address": "http://127.0.0.1:0",
    "management_address": "http://127.0.0.1:0",
    "metrics_address": "http://127.0.0.1:0",
    "grpc_inference_port": "0",
    "grpc_management_port": "0",
}


@dataclass(frozen=True)
class ServerProcess:
    """A server process, running or ended.

    `urls` are those of `inference`, `management` and `metrics`. `ports` are those of `grpc_inference`
    and `grpc_management`; empty if gRPC is off.
    """

    run: Path
    process: subprocess.Popen[bytes]
    urls: Mapping[str, str]
    ports: Mapping[str, int]
    lifeline: int

    @property
    def pid(self) -> int:
        return self.process.pid

    def client(self, **options: Any) -> Client:
        keys = self.run / "key_file.json"
        mine = {"key_file": keys} if keys.is_file() else {}
        return Client(self.urls["inference"], self.urls["management"], **{**mine, **options})

    def log(self) -> str:
        """The log of the server and its workers."""
        return (self.run / "server.log").read_text(encoding="utf-8", errors="replace")

    def stop(self) -> int:
        """Stop the server by SIGTERM. Returns its exit code.

        It answers accepted requests first. After `STOP_TIMEOUT_S` seconds it is killed.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            os.close(self.lifeline)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(
    store: Store,
    run: Path,
    *,
    config: Path | None = None,
    settings: Mapping[str, str] | None = None,
    arguments: Sequence[str] = ("--ncs",),
    environment: Mapping[str, str] | None = None,
    python: Path | None = None,
    timeout_s: float = READY_TIMEOUT_S,
) -> ServerProcess:
    """Start a server on free loopback ports, with every model ready.

    Args:
        run: a folder for its configuration, log and state.
        config: a `config.properties`; `settings` override it.
        arguments: more of the command line of `torchport serve`.
        environment: variables for the server and its workers, such as TORCHPORT_BACKEND.
        python: the interpreter to run it with; this one unless given.

    Raises:
        ServerError: it does not start, or a model does not become ready; the message has the end of its log.
    """
    run.mkdir(parents=True, exist_ok=True)
    run = run.resolve()
    (run / "server.json").unlink(missing_ok=True)
    properties = {**(read_properties(config) if config else {}), **_ANY_PORT}
    properties |= {"model_store": str(store.path.resolve()), "key_file": str(run / "key_file.json")}
    properties |= dict(settings or {})
    written = run / "config.properties"
    written.write_text("".join(f"{key}={value}\n" for key, value in properties.items()), encoding="utf-8")
    # The server's end of this pipe tells it when this process is gone.
    theirs, ours = os.pipe()
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TS_CONFIG_FILE")}
    variables |= {"TORCHPORT_SERVER_LIFELINE": str(theirs)} | dict(environment or {})
    with (run / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(python or sys.executable),
                *("-m", "torchport", "serve", "--ts-config", str(written), "--run", str(run)),
                *arguments,
            ],
            env=variables,
            pass_fds=(theirs,),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    os.close(theirs)
    try:
        return _wait_ready(run, process, ours, timeout_s)
    except BaseException:
        process.kill()
        process.wait()
        os.close(ours)
        raise


def _wait_ready(
    run: Path, process: subprocess.Popen[bytes], lifeline: int, timeout_s: float
) -> ServerProcess:
    deadline = time.monotonic() + timeout_s
    server = None
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"the server ended while it started:\n{_tail(run)}")
        if server is None:
            record = read_json(run / "server.json", "inference", "management", "metrics")
            if record is not None:
                urls = {name: record[name] for name in ("inference", "management", "metrics")}
                ports = {name: record[name] for name in record if name.startswith("grpc_")}
                server = ServerProcess(run, process, urls, ports, lifeline)
        elif _is_ready(server):
            return server
        time.sleep(0.02)
    raise ServerError(f"not every model was ready within {timeout_s:g} s:\n{_tail(run)}")


def _is_ready(server: ServerProcess) -> bool:
    record = read_json(server.run / "server.json", "loaded")
    if record is None or not record["loaded"]:
        return False
    if record["failures"]:
        raise ServerError(f"not every model is served: {record['failures']}\n{_tail(server.run)}")
    with server.client(retries=0, timeout=5.0) as client:
        try:
            return client.ping() == "Healthy"
        except (RequestError, ServerError):
            return False


def _tail(run: Path, lines: int = 30) -> str:
    text = (run / "server.log").read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])
