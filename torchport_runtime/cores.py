"""How many cores this process may use: those that it may run on, and of them what its cgroups allow.

available_cores()                    # 2 in a container with --cpus 2, on a machine of 64 cores

A container's limit is a share of time on all cores. As many threads as the machine has cores would use it up
in the first milliseconds of each period, and then all wait for the next one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_PROCESS, _MOUNTS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def available_cores(process: Path = _PROCESS, mounts: Path = _MOUNTS) -> int:
    """Number of cores that this process may use, at least 1; part of a core is left out.

    `process` names the cgroups of this process, `mounts` is where the system shows them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in _quotas(process, mounts))]))


def _quotas(process: Path, mounts: Path) -> Iterator[float]:
    """The limits of this process's cgroups and of those that they are in, in cores."""
    for folder in cgroup_folders("cpu", process, mounts):
        try:
            limit = (folder / "cpu.max").read_text().split()
        except OSError:
            try:
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                limit = [(folder / name).read_text().strip() for name in names]
            except OSError:
                continue
        # "max" or -1: without limit.
        if len(limit) == 2 and limit[0].isdigit() and limit[1].isdigit() and int(limit[1]):
            yield int(limit[0]) / int(limit[1])


def cgroup_folders(controller: str, process: Path = _PROCESS, mounts: Path = _MOUNTS) -> Iterator[Path]:
    """Folders of the process's cgroups of a controller, version 2 and 1, innermost first.

    None where the system has no cgroups. In a container the path may be the host's, which is not there: the
    folders above it are.
    """
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = mounts / controllers if controllers else mounts
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for length in range(len(parts), -1, -1):
            yield top.joinpath(*parts[:length])
