"""Starts TorchServe, waits until every worker is ready, and stops it, by pid.

    with start(Store(Path("model_store")), run=Path(".run/torchserve-8080")) as server:
        server.client().predict("linear", json=[4.0])

Each server has a temporary folder, worker sockets, gRPC ports, logs and a key file of its own, so
that two can run side by side.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torchport.client import Client
from torchport.errors import RequestError, ServerError
from torchport.properties import read_properties
from torchport.recipe.shipped import packaged_folder
from torchport.store.files import read_json, write_json
from torchport.store.folders import Store
from torchport.targets.torchserve_log import load_failure, log_tail
from torchport.targets.torchserve_setup import Ports, addresses, find_java_home, refuse_taken, server_command

STARTING, PID_FILE = "starting.json", ".model_server.pid"
READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class TorchServe:
    """A running or ended TorchServe.

    `run` is the folder with its configuration, logs and pid.
    """

    run: Path
    ports: Ports
    pid: int
    started: float
    temporary: Path

    @property
    def key_file(self) -> Path:
        """Where TorchServe writes its keys, if tokens are on."""
        return self.run / "key_file.json"

    def client(self, **options: Any) -> Client:
        return Client(
            f"http://127.0.0.1:{self.ports.inference}",
            f"http://127.0.0.1:{self.ports.management}",
            **{"key_file": self.key_file if self.key_file.is_file() else None, **options},
        )

    def is_running(self) -> bool:
        return _process(self.pid, self.started) is not None

    def stop(self) -> None:
        """End the server and its workers, and remove its temporary folder."""
        import psutil

        process = _process(self.pid, self.started)
        family = []
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                family = [process, *process.children(recursive=True)]
                process.terminate()
        _, alive = psutil.wait_procs(family[:1], timeout=STOP_TIMEOUT_S)
        # Workers that outlive the front, and a front that did not end.
        _, workers = psutil.wait_procs(family[1:], timeout=2)
        for left in (*alive, *workers):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        psutil.wait_procs([*alive, *workers], timeout=5)
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.key_file.unlink(missing_ok=True)
        (self.run / STARTING).unlink(missing_ok=True)
        (self.run / "server.json").unlink(missing_ok=True)

    def __enter__(self) -> TorchServe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def running(run: Path) -> TorchServe | None:
    """The server that was started with this run folder, if it still runs."""
    record = read_json(run / "server.json", "pid", "started", "ports", "temporary")
    if record is None:
        return None
    server = TorchServe(
        run, Ports(**record["ports"]), record["pid"], record["started"], Path(record["temporary"])
    )
    return server if server.is_running() else None


def launched(run: Path) -> TorchServe | None:
    """The server that a process, gone since, was starting with this run folder."""
    record = read_json(run / STARTING, "temporary")
    if record is None:
        return None
    temporary = Path(record["temporary"])
    pid_file = temporary / PID_FILE
    if not pid_file.is_file() or not pid_file.read_text().strip().isdigit():
        return None
    pid = int(pid_file.read_text())
    return TorchServe(run, Ports(), pid, _started(pid), temporary)


def require_startable(
    store: Store, config: Path | None = None, python: Path | None = None
) -> tuple[Path | None, list[str], dict[str, str]]:
    """JAVA_HOME, the command and the configuration of a server to come; changes nothing.

    Raises:
        ServerError: TorchServe or Java is missing, the store is empty, `config` cannot be read.
    """
    if not store.archives():
        raise ServerError(f"no archives in {store.path}: torchport ship linear makes one")
    properties = read_properties(config or packaged_folder("deploy") / "config.properties")
    return find_java_home(), server_command(python), properties


def start(
    store: Store,
    run: Path,
    *,
    config: Path | None = None,
    ports: Ports | None = None,
    settings: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    python: Path | None = None,
    timeout_s: float = READY_TIMEOUT_S,
) -> TorchServe:
    """Start TorchServe on the store's archives and wait until every worker is ready.

    Args:
        run: a folder for its configuration, logs and pid.
        config: a `config.properties`; torchport's own unless given. The addresses in it are replaced
            by `ports`, the store by `store`, and `settings` win over it.
        environment: variables for the workers, such as TORCHPORT_BACKEND.
        python: the interpreter with TorchServe; this one unless given. torchport need not be in it.

    Raises:
        ServerError: TorchServe or Java is missing, a port is taken, the store is empty, a worker does
            not get ready; the message says which, with the end of the log.
    """
    ports = ports or Ports()
    if running(run) is not None:
        raise ServerError(
            f"a TorchServe already runs from {run}: torchport torchserve restart takes the store as it is"
        )
    java_home, command, properties = require_startable(store, config, python)
    refuse_taken(ports)
    archives = store.archives()
    run.mkdir(parents=True, exist_ok=True)
    run = run.resolve()
    # The worker sockets' paths must stay below 108 characters, so not below the run folder.
    temporary = Path(tempfile.mkdtemp(prefix="torchserve-"))
    write_json(run / STARTING, {"temporary": str(temporary)})
    properties |= {"model_store": str(store.path.resolve()), "load_models": "all"}
    _write_configuration(run, properties | addresses(ports) | dict(settings or {}))
    variables = _environment(run, temporary, java_home) | dict(environment or {})
    pid = _launch(run, temporary, command, variables)
    server = TorchServe(run, ports, pid, _started(pid), temporary)
    write_json(
        run / "server.json",
        {"pid": pid, "started": server.started, "ports": asdict(ports), "temporary": str(temporary)},
    )
    try:
        _wait_ready(server, archives, timeout_s)
        set_newest_default(server.client(), store)
    except BaseException:
        server.stop()
        raise
    return server


def _write_configuration(run: Path, properties: Mapping[str, str]) -> None:
    """Write the server's `config.properties`."""
    lines = "".join(f"{key}={value}\n" for key, value in properties.items())
    (run / "config.properties").write_text(lines, encoding="utf-8")


def _environment(run: Path, temporary: Path, java_home: Path | None) -> dict[str, str]:
    """Environment of TorchServe and its workers: this process's, with folders of its own."""
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TS_CONFIG_FILE")}
    variables |= {
        "TMPDIR": str(temporary),
        "TEMP": str(temporary),
        "LOG_LOCATION": str(run / "logs"),
        "METRICS_LOCATION": str(run / "logs"),
    }
    return variables | ({"JAVA_HOME": str(java_home)} if java_home else {})


def _launch(run: Path, temporary: Path, command: list[str], environment: Mapping[str, str]) -> int:
    """Start TorchServe in the background; the pid of its front.

    Raises:
        ServerError: it did not start; the message has the end of its output.
    """
    shutil.rmtree(run / "logs", ignore_errors=True)
    with (run / "console.log").open("wb") as console:
        done = subprocess.run(
            [*command, "--start", "--ncs", "--ts-config", str(run / "config.properties")],
            cwd=run,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            check=False,
        )
    pid_file = temporary / PID_FILE
    if done.returncode or not pid_file.is_file():
        shutil.rmtree(temporary, ignore_errors=True)
        raise ServerError(f"TorchServe did not start:\n{(run / 'console.log').read_text()[-2000:]}")
    return int(pid_file.read_text())


def set_newest_default(client: Client, store: Store) -> None:
    """Make the newest version of each model the default one.

    TorchServe itself takes the first that it meets.
    """
    for name, versions in store.archives().items():
        if len(versions) > 1:
            client.set_default(name, list(versions)[-1])


def _process(pid: int, started: float) -> Any:
    import psutil

    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
        return process if same else None
    except psutil.NoSuchProcess:
        return None


def _started(pid: int) -> float:
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return 0.0


def _wait_ready(server: TorchServe, archives: Mapping[str, Mapping[str, Path]], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    with server.client(retries=0, timeout=5.0) as client:
        while time.monotonic() < deadline:
            if not server.is_running():
                raise ServerError(f"TorchServe ended while it started:\n{log_tail(server.run)}")
            with contextlib.suppress(ServerError, RequestError):
                client = server.client(retries=0, timeout=5.0)
                if all(_is_ready(client, name, versions) for name, versions in archives.items()):
                    return
            failed = load_failure(server.run)
            if failed:
                raise ServerError(f"a worker cannot load its model: {failed}\n{log_tail(server.run)}")
            time.sleep(0.1)
    raise ServerError(f"not every worker was ready within {timeout_s:g} s:\n{log_tail(server.run)}")


def _is_ready(client: Client, name: str, versions: Mapping[str, Path]) -> bool:
    described = {entry["modelVersion"]: entry for entry in client.describe(name)}
    return set(versions) <= set(described) and all(
        sum(worker["status"] == "READY" for worker in described[version]["workers"])
        >= max(1, described[version]["minWorkers"])
        for version in versions
    )
