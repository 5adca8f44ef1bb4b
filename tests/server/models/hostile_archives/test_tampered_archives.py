"""Archives of torchport's, whose hashes no longer hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.archive_edits import rewrite
from tests.server.models.hostile_archives.registering import refusal
from tests.server.models.hostile_archives.writing import (
    MANIFEST,
)
from torchport.targets.torchport_serve import ServerProcess

pytestmark = pytest.mark.server


def one_byte(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def in_certificate(**changes: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | changes).encode()


def in_config(**changes: object) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        config = yaml.safe_load(content)
        config["torchport"] |= changes
        return yaml.safe_dump(config).encode()

    return change


TAMPERED: dict[str, tuple[dict[str, Callable[[bytes], bytes]], str]] = {
    "handler": ({"regressor.py": one_byte}, "regressor.py is not what parity.json was made for"),
    "artifact": ({"main.onnx": one_byte}, "main.onnx is not what parity.json was made for"),
    "signature": ({"signature.json": lambda c: c + b" "}, "signature.json is not what"),
    "runtime": ({"torchport_runtime/handler.py": one_byte}, "torchport_runtime is not what"),
    "a file of the runtime's": (
        {"torchport_runtime/evil.py": lambda c: b"x"},
        "torchport_runtime is not what",
    ),
    "a file more": ({"sitecustomize.py": lambda c: b"x"}, "sitecustomize.py is in the archive, but not in"),
    "a compiled file": (
        {"__pycache__/regressor.cpython-311.pyc": lambda c: b"x"},
        "but not in its certificate",
    ),
    "a certificate that did not pass": ({"parity.json": in_certificate(passed=False)}, "did not pass"),
    "one that says perhaps": ({"parity.json": in_certificate(passed="yes")}, "did not pass"),
    "one of another model": ({"parity.json": in_certificate(recipe="other")}, "is not that of parity.json"),
    "one without hashes": ({"parity.json": in_certificate(binding={})}, "not of torchport's shape"),
    "one with nothing in it": ({"parity.json": lambda c: b"[]"}, "expected an object"),
    "options": ({"model-config.yaml": in_config(tf32=True)}, "options of onnxruntime"),
    "handler options": ({"model-config.yaml": in_config(handler={"x": 1})}, "handler's options"),
    "an unknown backend": ({"model-config.yaml": in_config(backend="magic")}, "backend 'magic'"),
    "an unknown option": ({"model-config.yaml": in_config(magic=1)}, "torchport.magic is not known"),
    "a device of no kind": ({"model-config.yaml": in_config(device="/dev/sda")}, "device '/dev/sda'"),
    "another handler": (
        {MANIFEST: lambda c: c.replace(b'"regressor.py"', b'"torchport_runtime.py"')},
        "manifest's handler",
    ),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_archives_of_torchport_s_whose_certificate_does_not_hold(
    server: ServerProcess, place: Path, linear_archive: Path, case: str
) -> None:
    changes, reason = TAMPERED[case]
    path = place / "store" / "tampered-1.0.mar"
    rewrite(linear_archive, path, changes)
    try:
        status, message = refusal(server, url=path.name, model_name="tampered", initial_workers=1)
    finally:
        path.unlink()
    assert (status, reason in message) == (400, True), message
