"""How much memory this process and its children may still take.

available_bytes()                    # 8_500_000_000: what is free, or less in a container with a limit
"""

from __future__ import annotations

from pathlib import Path

from torchport_runtime.cores import cgroup_folders

_INFO, _PROCESS, _MOUNTS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")

_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Files of a cgroup with its limit and its use, and the key of `memory.stat` for what the kernel would give
up of that; of version 2 and of version 1."""


def available_bytes(info: Path = _INFO, process: Path = _PROCESS, mounts: Path = _MOUNTS) -> int | None:
    """Bytes that are available in the machine and in each cgroup of this process; None if unknown."""
    found = [_of_machine(info)]
    for folder in cgroup_folders("memory", process, mounts):
        found += [_of_cgroup(folder, *names) for names in _FILES]
    known = [bytes_ for bytes_ in found if bytes_ is not None]
    return max(0, min(known)) if known else None


def _of_machine(info: Path) -> int | None:
    for key, value in _pairs(info):
        if key == "MemAvailable:":
            return value * 1024
    return None


def _of_cgroup(folder: Path, limit: str, used: str, reclaimable: str) -> int | None:
    """What a cgroup's limit leaves; None without a limit."""
    try:
        # "max" is no number: without limit.
        left = int((folder / limit).read_text()) - int((folder / used).read_text())
    except (OSError, ValueError):
        return None
    return left + dict(_pairs(folder / "memory.stat")).get(reclaimable, 0)


def _pairs(path: Path) -> list[tuple[str, int]]:
    """Names and numbers of a file with one pair on each line."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return []
    return [(line[0], int(line[1])) for line in lines if len(line) > 1 and line[1].isdigit()]
