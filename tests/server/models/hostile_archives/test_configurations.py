"""Configurations that are traps or mistakes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.models.hostile_archives.writing import (
    MANIFEST,
    bomb,
    manifest,
)

pytestmark = pytest.mark.server

CONFIGS = {
    "a billion values": (bomb(), "more than 100000 values"),
    "a billion values where a number belongs": (f"{bomb()}\nminWorkers: *a11", "more than 100000 values"),
    "a list in itself": ("minWorkers: &a [*a]", "more than 100000 values"),
    "code": ("x: !!python/object/apply:os.mknod [MARK]", "cannot be read"),
    "a module": ("x: !!python/module:os", "cannot be read"),
    "a name of Python": ("x: !!python/name:os.system", "cannot be read"),
    "deep": ("x: " + "[" * 5_000, "cannot be read"),
    "deep braces": ("{" * 5_000, "cannot be read"),
    "a list": ("- 1", "holds list, expected an object"),
    "two documents": ("a: 1\n---\nb: 2", "cannot be read"),
    "a number in base 60": (f"minWorkers: 1{':1' * 400_000}", "a number of over 64 characters"),
    "a huge number": (f"minWorkers: 0x{'f' * 900_000}", "a number of over 64 characters"),
    "a large number": ("minWorkers: 0xffffffffffffffff", "min_workers is 18446744073709551615"),
    "a moment that is none": ("x: !!timestamp soon", "cannot be read"),
    "large": ("x: " + os.urandom(1 << 20).hex(), "larger than 1 MiB"),
    "a date that is none": ("x: 2026-99-99", "cannot be read"),
    "workers that are no number": ("minWorkers: many", "min_workers is 'many'"),
    "fewer workers than none": ("minWorkers: -1", "min_workers is -1"),
    "a batch of none": ("batchSize: 0", "batch_size is 0"),
    "devices that are no numbers": ("deviceIds: [a]", "device_ids is ['a']"),
    "an unknown key of ours": ("torchport_server: {recycle: 3}", "torchport_server.recycle is not known"),
    "an unknown key of ours, and long": (f"torchport_server: {{{'x' * 1000}: 3}}", "is not known"),
    "a long list of ours": (f"torchport_server: [{'x, ' * 9000}]", "names and values are expected"),
    "sequences": ("sequenceBatching: true\nmaxNumSequence: 4", "sequenceBatching is True, which torchport"),
    "continuous batching": ("continuousBatching: yes", "continuousBatching is True, which torchport"),
    "a model in parts": ("parallelType: tp\ntorchrun: {nproc-per-node: 4}", "parallelType is 'tp'"),
    "more threads than any machine has": ("torchport: {threads: 1000000}", "torchport.threads is 1000000"),
    "threads that are less than none": ("torchport: {threads: -1}", "torchport.threads is -1"),
    "ours that is no mapping": ("torchport_server: 3", "names and values are expected"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_that_are_traps_or_mistakes(
    refused: Callable[..., str], place: Path, case: str
) -> None:
    text, reason = CONFIGS[case]
    config = text.replace("MARK", repr(str(place / "mark"))).encode()
    message = refused({MANIFEST: manifest(configFile="c.yaml"), "c.yaml": config})
    assert reason in message
