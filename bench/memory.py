"""How much memory processes hold.

memory_of([pid]).rss_mb
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psutil

MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Memory:
    """In megabytes: resident (`rss`), resident with what is shared divided by its sharers (`pss`), and
    what would be free if the process ended (`uss`). On systems without the last two they are the first."""

    rss_mb: float
    pss_mb: float
    uss_mb: float


def memory_of(pids: Iterable[int]) -> Memory:
    """The sum over processes.

    Raises:
        psutil.Error: one of them is gone.
    """
    found = [psutil.Process(pid).memory_full_info() for pid in pids]
    return Memory(
        rss_mb=sum(info.rss for info in found) / MB,
        pss_mb=sum(getattr(info, "pss", info.rss) for info in found) / MB,
        uss_mb=sum(getattr(info, "uss", info.rss) for info in found) / MB,
    )


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    process = psutil.Process(pid)
    return [process.pid, *(child.pid for child in process.children(recursive=True))]
