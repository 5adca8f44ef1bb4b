"""Snapshots: models and their settings, kept over a restart.

A snapshot is TorchServe's `model_snapshot`, in a file of TorchServe's format.

snapshot = Snapshots(folder, registry)
snapshot.save()                      # logs/config/20261123-170105123-snapshot.cfg
read_last(folder)
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torchport.errors import TorchportError
from torchport.properties import read_properties
from torchport.server.models.registry import Registry
from torchport.server.models.version import ModelVersion
from torchport.server.settings.checks import require_snapshot
from torchport.store.files import write_bytes

logger = logging.getLogger(__name__)

KEPT = 5
"""Number of snapshots that are kept; older ones are deleted."""


class Snapshots:
    """Writes snapshots of a registry into a folder."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self._folder, self._registry = folder, registry
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshots")
        self._lock = threading.Lock()
        self._pending: tuple[str, bytes] | None = None
        self._writing: Future[None] | None = None

    def save(self) -> None:
        """Write a snapshot; if that fails, log it and go on."""
        self._write(*self._snapshot())

    def save_soon(self) -> None:
        """Write a snapshot of what is now, in a thread: a disk may take seconds.

        Of several that wait for the disk only the last one is written.
        """
        snapshot = self._snapshot()
        with self._lock:
            self._pending = snapshot
            if self._writing is None:
                self._writing = self._thread.submit(self._write_pending)

    async def written(self) -> None:
        """Return when the last snapshot has been written, or could not be."""
        with self._lock:
            writing = self._writing
        if writing is not None:
            await asyncio.shield(asyncio.wrap_future(writing))

    def _write_pending(self) -> None:
        while True:
            with self._lock:
                snapshot, self._pending = self._pending, None
                if snapshot is None:
                    self._writing = None
                    return
            self._write(*snapshot)

    def _snapshot(self) -> tuple[str, bytes]:
        """A snapshot's name and content."""
        # Names sort by time: in local time an hour comes twice.
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S%f}"[:-3] + "-snapshot"
        models: dict[str, Any] = {model: dict(found) for model, found in self._registry.unrestored.items()}
        for model_name, model in self._registry.models.items():
            for number, version in model.versions.items():
                models.setdefault(model_name, {})[number] = _entry(version, number == model.default)
        snapshot = {"name": f"{name}.cfg", "modelCount": len(models), "models": models}
        return name, f"model_snapshot={_escaped(json.dumps(snapshot))}\n".encode()

    def _write(self, name: str, content: bytes) -> None:
        try:
            write_bytes(self._folder / f"{name}.cfg", content)
            for old in sorted(self._folder.glob("*-snapshot.cfg"))[:-KEPT]:
                old.unlink(missing_ok=True)
        except (OSError, TorchportError) as err:
            logger.warning("no snapshot was written: %s", err)


def _entry(version: ModelVersion, is_default: bool) -> dict[str, Any]:
    settings = version.settings
    entry: dict[str, Any] = {
        "defaultVersion": is_default,
        "marName": version.model.url,
        **settings.to_json(),
    }
    if version.model.handler_given:
        entry["handler"] = version.model.handler
    return entry


def read_last(folder: Path) -> dict[str, Any] | None:
    """Content of the newest snapshot that can be read; None without any."""
    for path in sorted(folder.glob("*-snapshot.cfg"), reverse=True):
        try:
            value: dict[str, Any] = json.loads(read_properties(path).get("model_snapshot", ""))
            require_snapshot(path.name, value)
        except (TorchportError, ValueError, RecursionError) as err:
            logger.warning("%s cannot be read: %s", path, err)
            continue
        return value
    return None


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\")
