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
import re
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
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


_NAME = re.compile(r"([0-9]{8}-[0-9]{9})-snapshot\.cfg")


class Snapshots:
    """Writes snapshots of a registry into a folder."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self._folder, self._registry = folder, registry
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshots")
        self._lock = threading.Lock()
        self._pending: dict[str, Any] | None = None
        self._writing: Future[None] | None = None

    def save(self) -> None:
        """Write a snapshot; if that fails, log it and go on."""
        self._write(self._snapshot())

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
            self._write(snapshot)

    def _snapshot(self) -> dict[str, Any]:
        """A snapshot's content but its name."""
        models: dict[str, Any] = {model: dict(found) for model, found in self._registry.unrestored.items()}
        for model_name, model in self._registry.models.items():
            for number, version in model.versions.items():
                models.setdefault(model_name, {})[number] = _entry(version, number == model.default)
        return {"modelCount": len(models), "models": models, "archives": self._registry.known.to_json()}

    def _write(self, snapshot: dict[str, Any]) -> None:
        # The name is the time of writing, and comes after that of the file that was written before.
        name = f"{_new_time(_written(self._folder))}-snapshot.cfg"
        text = f"model_snapshot={_escaped(json.dumps({'name': name, **snapshot}))}\n"
        try:
            write_bytes(self._folder / name, text.encode())
            for old in _written(self._folder)[:-KEPT]:
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
    for path in reversed(_written(folder)):
        try:
            value: dict[str, Any] = json.loads(read_properties(path).get("model_snapshot", ""))
            require_snapshot(path.name, value)
        except (TorchportError, ValueError, RecursionError) as err:
            logger.warning("%s cannot be read: %s", path, err)
            continue
        return value
    return None


def _written(folder: Path) -> list[Path]:
    """The snapshots in a folder, the oldest first."""
    return sorted(path for path in folder.glob("*-snapshot.cfg") if _NAME.fullmatch(path.name))


def _new_time(written: list[Path]) -> str:
    """The time in the name of a new snapshot, which sorts behind all others.

    It is the clock's, in UTC because an hour comes twice in local time. If the clock was set back since the
    last snapshot, it is the next millisecond after that one's.
    """
    now = _in_name(datetime.now(UTC))
    last = written[-1].name.removesuffix("-snapshot.cfg") if written else ""
    if now > last:
        return now
    try:
        return _in_name(datetime.strptime(f"{last}000", "%Y%m%d-%H%M%S%f") + timedelta(milliseconds=1))
    except (ValueError, OverflowError):
        return last  # No time at all, or the last of all: the file is replaced.


def _in_name(time: datetime) -> str:
    return f"{time:%Y%m%d-%H%M%S%f}"[:-3]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\")
