"""Servers of Python models that anyone can install: mosec, LitServe, BentoML and Ray Serve.

work = Work(kind="tensor", model=archives.mean_onnx, body=npy(rows), content_type="application/x-npy")
with litserve_server(Environment.made("litserve"), work, workers=1, batch_size=8) as server:
    ask(server.question(work.body, work.content_type))

The modules that they run are those of `bench/apps`; each says which of its documentation's advice it takes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import APPS, Server, command_server, free_port
from bench.environments import Environment

WAIT_MS = 1
"""For a batch to fill: with any more, one connection alone would measure the wait."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A model of `apps/work.py`, and a request for it. `kind` is its name there."""

    kind: str
    model: Path
    body: bytes
    content_type: str

    def variables(self, workers: int, batch_size: int, port: int) -> dict[str, str]:
        """What the modules read from the environment."""
        numbers = {"WORKERS": workers, "BATCH_SIZE": batch_size, "WAIT_MS": WAIT_MS, "PORT": port}
        return {
            "WORK": self.kind,
            "MODEL": str(self.model.resolve()),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(APPS),
            **{name: str(value) for name, value in numbers.items()},
        }


@contextmanager
def mosec_server(
    work: Work, *, port: int = 0, workers: int = 1, batch_size: int, wait_ms: int = WAIT_MS
) -> Iterator[Server]:
    """mosec, which needs no environment of its own."""
    port = port or free_port()
    folder = tempfile.mkdtemp(prefix="mosec-")
    command = [sys.executable, str(APPS / "mosec_app.py"), "--address", "127.0.0.1", "--port", str(port)]
    command += ["--path", f"{folder}/sockets", "--log-level", "error"]
    variables = work.variables(workers, batch_size, port) | {"WAIT_MS": str(wait_ms)}
    try:
        with _serving(command, variables, f"http://127.0.0.1:{port}/inference", work) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def litserve_server(
    environment: Environment, work: Work, *, port: int = 0, workers: int = 1, batch_size: int
) -> Iterator[Server]:
    """LitServe."""
    port = port or free_port()
    command = [environment.python, str(APPS / "litserve_app.py")]
    variables = work.variables(workers, batch_size, port)
    with _serving(command, variables, f"http://127.0.0.1:{port}/predict", work) as server:
        yield server


@contextmanager
def bentoml_server(
    environment: Environment, work: Work, *, port: int = 0, workers: int = 1, batch_size: int
) -> Iterator[Server]:
    """BentoML."""
    port = port or free_port()
    command = [environment.python, "-m", "bentoml", "serve", "bentoml_app:App", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--working-dir", str(APPS)]
    variables = work.variables(workers, batch_size, port) | {"BENTOML_DO_NOT_TRACK": "true"}
    with _serving(command, variables, f"http://127.0.0.1:{port}/predict", work) as server:
        yield server


@contextmanager
def ray_server(
    environment: Environment,
    work: Work,
    *,
    port: int = 0,
    workers: int = 1,
    batch_size: int,
    haproxy: bool = False,
) -> Iterator[Server]:
    """Ray Serve, a cluster of its own; with HAProxy or with Ray's own proxy in front."""
    port = port or free_port()
    folder = tempfile.mkdtemp(prefix="ray-")  # Ray's sockets need a short path.
    variables = work.variables(workers, batch_size, port) | {
        "RAY_TMPDIR": folder,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": str(int(haproxy)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
    }
    command = [environment.python, str(APPS / "ray_app.py")]
    try:
        with _serving(command, variables, f"http://127.0.0.1:{port}/", work) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _serving(command: list[str], variables: dict[str, str], url: str, work: Work) -> Iterator[Server]:
    with command_server(command, variables, url, work.body, content_type=work.content_type) as server:
        yield server
