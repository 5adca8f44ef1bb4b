"""Who used the processor during a run: the server, the load generator, others; and what stayed idle.

before = Snapshot.of(server.pid)
...                                                 # the run
usage = Snapshot.of(server.pid).since(before)       # Usage(server=0.61, load=0.2, idle=0.11, cores=2)
"""

from __future__ import annotations

import resource
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from bench.memory import family


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Shares of the processor time of the whole machine: 1 is all of its cores all the time.

    `server` is the server's process with all that descend from it; `load` is the load generator, which is
    this process and its children that have ended.
    """

    server: float
    load: float
    idle: float
    cores: int

    @property
    def others(self) -> float:
        """Other processes, and what the kernel does in nobody's name, such as most of the loopback's work."""
        return max(0.0, 1 - self.server - self.load - self.idle)

    def microseconds(self, share: float, per_second: float) -> float:
        """Processor time that an answer takes of a share, in microseconds."""
        return share * self.cores * 1e6 / per_second if per_second else 0.0

    @classmethod
    def median(cls, found: Sequence[Usage]) -> Usage:
        """The medians of several runs, each share by itself."""
        return cls(
            server=statistics.median(usage.server for usage in found),
            load=statistics.median(usage.load for usage in found),
            idle=statistics.median(usage.idle for usage in found),
            cores=found[0].cores,
        )


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Seconds of processor time until now. The machine's are those of `/proc/stat` on Linux."""

    server_s: float
    load_s: float
    idle_s: float
    machine_s: float

    @classmethod
    def of(cls, pid: int | None) -> Snapshot:
        """`pid` is the server's; None before it is started.

        No child of this process may end between two snapshots but the load generator, and that must.
        """
        before = psutil.cpu_times()
        server_s = 0.0 if pid is None else _seconds_of(family(pid))
        ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        # To look through many processes takes a while: the machine's clock is read on both sides of it.
        machine = before, psutil.cpu_times()
        return cls(
            server_s=server_s,
            load_s=sum(used.ru_utime + used.ru_stime for used in ours),
            idle_s=statistics.mean(times.idle + getattr(times, "iowait", 0.0) for times in machine),
            machine_s=statistics.mean(_all_of(times) for times in machine),
        )

    def since(self, before: Snapshot) -> Usage:
        total = max(self.machine_s - before.machine_s, 1e-9)
        return Usage(
            server=(self.server_s - before.server_s) / total,
            load=(self.load_s - before.load_s) / total,
            idle=(self.idle_s - before.idle_s) / total,
            cores=psutil.cpu_count() or 1,
        )


def _all_of(times: Any) -> float:
    """All kinds of time. Guests' is in that of users already."""
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return float(sum(times) - guests)


def _seconds_of(pids: Sequence[int]) -> float:
    """The processes' own time, and that of those children which they have outlived."""
    total = 0.0
    for pid in pids:
        try:
            total += sum(psutil.Process(pid).cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total
