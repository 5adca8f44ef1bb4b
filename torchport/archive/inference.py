"""Answers one request with an archive, without a server: answer, provider and latency.

infer(Path("model_store/linear-1.0.mar"), Input(json=[4.0]), repeat=100).answer
"""

from __future__ import annotations

import base64
import json as json_module
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from torchport.archive.contents import inspect_archive
from torchport.archive.model import load
from torchport.errors import ArchiveError, BadRequest
from torchport.store.folders import Store


@dataclass(frozen=True, kw_only=True)
class Input:
    """A request's body: an object for JSON, or bytes with their content type."""

    json: Any = None
    body: bytes | None = None
    content_type: str = "application/octet-stream"
    params: Mapping[str, str] = field(default_factory=dict)

    @property
    def value(self) -> Any:
        return self.json if self.body is None else self.body


@dataclass(frozen=True)
class Inference:
    """An answer, the providers that computed it, and the latencies.

    `latencies` are seconds of whole requests after a warm-up, including decoding and encoding.
    """

    answer: Any
    providers: dict[str, str]
    latencies: list[float]

    def percentile_ms(self, q: float) -> float:
        return float(np.percentile(self.latencies, q) * 1000)


def infer(archive: Path, request: Input, *, device: str = "auto", repeat: int = 100) -> Inference:
    """Answer a request with ONNX Runtime alone, and measure `repeat` more answers.

    Raises:
        ArchiveError: not an archive of torchport, or its hashes do not match.
        BackendError: the device is not available, or the archive has no ONNX artifact.
        BadRequest: the reason that a client would get as a 4xx.
    """
    with load(archive, backend="onnxruntime", device=device) as model:
        answer = model.predict(request.value, **request.params)
        latencies = []
        for _ in range(repeat):
            started = time.perf_counter()
            model.predict(request.value, **request.params)
            latencies.append(time.perf_counter() - started)
        return Inference(answer, model.providers, latencies)


def find_archive(store: Store, name: str, version: str | None = None) -> Path:
    """The archive of a model, by name or by path.

    By name it is the newest version, unless one is given.

    Raises:
        ArchiveError: no archive has this name or version.
    """
    if name.endswith(".mar"):
        return Path(name)
    versions = store.archives().get(name, {})
    if not versions:
        have = ", ".join(store.archives()) or "no archives"
        raise ArchiveError(f"{store.path} holds {have}, not {name!r}: torchport ship RECIPE makes an archive")
    if version is None:
        return list(versions.values())[-1]
    if version not in versions:
        raise ArchiveError(f"{name} has the versions {', '.join(versions)}, not {version!r}")
    return versions[version]


def read_input(given: str | None, archive: Path | None) -> Input:
    """A request from the command line: a file, JSON, or the archive's own sample.

    Raises:
        BadRequest: neither a file nor JSON; or nothing was given, and the archive has no sample.
    """
    if given is None:
        sample = inspect_archive(archive).certificate.get("sample_request") if archive else None
        if not sample:
            raise BadRequest("this archive carries no sample request: give one, a file or JSON")
        if "json" in sample:
            return Input(json=sample["json"], params=sample["params"])
        return Input(
            body=base64.b64decode(sample["b64"]),
            content_type=sample["content_type"],
            params=sample["params"],
        )
    path = Path(given)
    try:
        is_file = path.is_file()
    except OSError:  # JSON can be too long for a file's name.
        is_file = False
    content = path.read_bytes() if is_file else given.encode()
    if is_file and path.suffix.lower() != ".json":
        return Input(body=content)
    try:
        value = json_module.loads(content)
        if value is None:
            raise ValueError("null is no request")
        return Input(json=value)
    except (ValueError, RecursionError) as err:
        what = f"{path} is not JSON" if is_file else f"{given[:60]!r} is neither a file nor JSON"
        raise BadRequest(f"{what} ({err})") from err
