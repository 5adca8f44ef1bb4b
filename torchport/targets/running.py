"""The servers that run from a folder, by the `server.json` that each leaves in its run folder.

for server in running_servers(Path(".run")):
    server.management                # "http://127.0.0.1:8081"
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from torchport.store.files import read_json

_REQUIRED = ("pid", "inference", "management", "store", "watches")


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """A `torchport serve` that runs. `watches` is whether it looks for news of its store by itself."""

    pid: int
    inference: str
    management: str
    store: Path
    watches: bool


def running_servers(runs: Path, store: Path | None = None) -> list[RunningServer]:
    """Those whose run folders are in `runs`, and which serve from `store`, if one is given."""
    found = []
    for path in sorted(runs.glob("serve-*/server.json")):
        record = read_json(path, *_REQUIRED)
        if record is None or not _runs(record["pid"], path):
            continue
        server = RunningServer(
            pid=record["pid"],
            inference=str(record["inference"]),
            management=str(record["management"]),
            store=Path(str(record["store"])),
            watches=bool(record["watches"]),
        )
        if store is None or server.store == store.resolve():
            found.append(server)
    return found


def _runs(pid: object, record: Path) -> bool:
    """Whether the process that wrote the record runs: a number may be another process's by now."""
    try:
        return isinstance(pid, int) and psutil.Process(pid).create_time() <= record.stat().st_mtime + 1
    except (psutil.Error, OSError, ValueError):
        return False
