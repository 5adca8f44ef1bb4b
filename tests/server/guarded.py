"""A server that `torchport_serve.start` cannot ask for its health: it wants a key, or a certificate.

    with guarded(folder, {"model_store": str(store), "disable_token_authorization": "false"}) as server:
        server.ask("inference", "/ping", server.keys()["inference"])

It is configured by a file, as TorchServe is.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.server.archives import write_archive
from tests.server.waiting import PATIENCE_S, wait_until
from torchport.store.files import read_json

APIS = ("inference", "management", "metrics")

_HANDLER = """
    def handle(data, context):
        return data and [b"x" * 6_000_000 if row["body"] == b"large" else "answer" for row in data]
"""


@dataclass
class Guarded:
    """`urls` by API; `ports` of `grpc_inference` and `grpc_management`, where gRPC is on."""

    urls: dict[str, str]
    ports: dict[str, int]
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def key_file(self) -> Path:
        return self.folder / "key_file.json"

    def keys(self) -> dict[str, str]:
        return {kind: entry["key"] for kind, entry in json.loads(self.key_file.read_text()).items()}

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def ask(self, api: str, path: str, key: str | None = None, method: str = "GET", **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        return requests.request(method, self.urls[api] + path, headers=headers, timeout=PATIENCE_S, **more)


def addresses(scheme: str = "http") -> dict[str, str]:
    """Settings for a free port each."""
    return {f"{api}_address": f"{scheme}://127.0.0.1:0" for api in APIS}


def serve_command(folder: Path, settings: dict[str, str], *arguments: str) -> list[str]:
    """`torchport serve` with these settings, on free ports; its run, store and key file are in `folder`."""
    store = folder / "store"
    store.mkdir(parents=True, exist_ok=True)
    ports = {f"grpc_{name}_port": "0" for name in ("inference", "management")}
    files = {"key_file": str(folder / "key_file.json"), "model_store": str(store)}
    written = addresses() | ports | files | settings
    config = folder / "config.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in written.items()))
    serve = [sys.executable, "-m", "torchport", "serve", "--ts-config", str(config), "--run", str(folder)]
    return [*serve, "--ncs", *arguments]


@contextlib.contextmanager
def guarded(folder: Path, settings: dict[str, str], *arguments: str) -> Iterator[Guarded]:
    """A server once its models are loaded, whatever it takes to be let in."""
    command = serve_command(folder, settings, *arguments)

    def record() -> dict[str, Any]:
        return read_json(folder / "server.json", "loaded") or {}

    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            wait_until(lambda: record().get("loaded") or process.poll() is not None)
            assert process.poll() is None, (folder / "log").read_text()
            found = record()
            ports = {name: port for name, port in found.items() if name.startswith("grpc_")}
            server = Guarded({api: found[api] for api in APIS}, ports, folder, process)
            yield server
            assert process.poll() is None
            assert "Traceback" not in server.log()
        finally:
            process.terminate()


def guarded_model(folder: Path, settings: dict[str, str]) -> contextlib.AbstractContextManager[Guarded]:
    """One with one model, `model`, and no gRPC. It answers `large` with 6 MB."""
    write_archive(folder / "store", "model", _HANDLER)
    mine = {"model_store": str(folder / "store"), "default_workers_per_model": "1"}
    return guarded(folder, mine | settings, "--no-grpc")


def message_of_refusal(folder: Path, settings: dict[str, str], *arguments: str) -> str:
    """What a server that must not start says before it ends."""
    done = subprocess.run(
        serve_command(folder, settings, "--no-grpc", *arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "Traceback" not in said
    return " ".join(said.split())
