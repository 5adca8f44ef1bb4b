"""What a server holds: processes, descriptors, threads, memory, unpacked archives.

    before = footprint(server, mark, folders)
    ...
    before.growth(footprint(server, mark, folders))      # ["2 processes more: sleep 3600, ..."]

Two footprints can be compared when both were taken of an idle server with the same models and workers.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "TORCHPORT_CHAOS"
"""Variable in the environment of the server, which all its processes inherit, orphans too."""

MORE_DESCRIPTORS = 4
"""Descriptors that may be more later: the server closes a connection a moment after its client has."""
MORE_THREADS = 8
"""Threads that may be more later: those of pools, which are started when first needed."""
MORE_MEMORY_MB = 48
"""Megabytes by which the front may grow. Allocators keep what was once needed, such as for large bodies, of
which a dozen clients may send some at once; a leak of 1 KB a request is more than this in a few minutes."""
MORE_WORKER_MEMORY_MB = 48
"""The same for the largest of the workers."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a server holds at one time; memory is in megabytes."""

    processes: Counter[str]
    descriptors: Counter[str]
    threads: int
    memory_mb: float
    worker_memory_mb: float
    unpacked: int

    def growth(self, later: Footprint) -> list[str]:
        """What is more in a later footprint than it may be."""
        found = []
        more = later.processes - self.processes
        if more:
            found.append(f"{more.total()} processes more: {_listed(more)}")
        fewer = self.processes - later.processes
        if fewer:
            found.append(f"{fewer.total()} processes fewer: {_listed(fewer)}")
        if later.descriptors.total() > self.descriptors.total() + MORE_DESCRIPTORS:
            found.append(f"descriptors more: {_listed(later.descriptors - self.descriptors)}")
        if later.threads > self.threads + MORE_THREADS:
            found.append(f"{later.threads - self.threads} threads more")
        if later.memory_mb > self.memory_mb + MORE_MEMORY_MB:
            found.append(f"the front has {later.memory_mb - self.memory_mb:.0f} MB more")
        if later.worker_memory_mb > self.worker_memory_mb + MORE_WORKER_MEMORY_MB:
            found.append(f"a worker has {later.worker_memory_mb - self.worker_memory_mb:.0f} MB more")
        if later.unpacked != self.unpacked:
            found.append(f"{later.unpacked} archives are unpacked, before it were {self.unpacked}")
        return found

    def difference(self, later: Footprint) -> str:
        """Both footprints, in a line."""
        return (
            f"processes {self.processes.total()} to {later.processes.total()}, "
            f"descriptors {self.descriptors.total()} to {later.descriptors.total()}, "
            f"threads {self.threads} to {later.threads}, "
            f"front {self.memory_mb:.0f} to {later.memory_mb:.0f} MB, "
            f"largest worker {self.worker_memory_mb:.0f} to {later.worker_memory_mb:.0f} MB, "
            f"unpacked archives {self.unpacked} to {later.unpacked}"
        )


def marked_processes(mark: str) -> list[psutil.Process]:
    """All processes with this mark in their environment, whoever their parent is now."""
    found = []
    wanted = f"{MARK}={mark}".encode()
    for process in psutil.process_iter():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:  # Another user's, or one that has ended.
            continue
        if wanted in environment.split(b"\0"):
            found.append(process)
    return found


def footprint(front: psutil.Process, mark: str, folders: Sequence[Path]) -> Footprint:
    """What the server with this front process holds now. Its archives are unpacked below `folders`."""
    processes = [process for process in marked_processes(mark) if process.pid != front.pid]
    resident = [megabytes(process) for process in processes]
    with front.oneshot():
        return Footprint(
            processes=Counter(filter(None, map(_name, processes))),
            descriptors=Counter(map(_descriptor, Path(f"/proc/{front.pid}/fd").iterdir())),
            threads=front.num_threads(),
            memory_mb=megabytes(front),
            worker_memory_mb=max(resident, default=0.0),
            unpacked=unpacked_archives(folders),
        )


def unpacked_archives(folders: Sequence[Path]) -> int:
    return sum(1 for folder in folders for _ in folder.rglob("MANIFEST.json"))


def megabytes(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 2**20
    except psutil.Error:
        return 0.0


def _name(process: psutil.Process) -> str:
    """The command without numbers; "" for a process that has just ended."""
    try:
        command = [part for part in process.cmdline() if not part.isdigit()]
        state = "" if process.status() != psutil.STATUS_STOPPED else " (stopped)"
        orphan = " (orphan)" if process.ppid() == 1 else ""
    except psutil.Error:
        return ""
    return " ".join([Path(command[0]).name, *command[1:]]) + state + orphan if command else ""


def _descriptor(path: Path) -> str:
    """A descriptor's kind: socket, pipe, a file's name."""
    try:
        return os.readlink(path).partition(":")[0]
    except OSError:
        return "closed"


def _listed(found: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in found.most_common())
