"""The cores that a process may use: what its cgroups allow of those that it may run on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchport_runtime.cores import available_cores
from torchport_runtime.options import BackendOptions

ALL = 64


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(ALL)), raising=False)


def cores_with(tmp_path: Path, cgroup: str, files: dict[str, str]) -> int:
    """The cores of a process whose `/proc/self/cgroup` is this, and whose cgroups have these files."""
    process, mounts = tmp_path / "cgroup", tmp_path / "mounts"
    process.write_text(cgroup)
    for name, content in files.items():
        (mounts / name).parent.mkdir(parents=True, exist_ok=True)
        (mounts / name).write_text(content)
    return available_cores(process, mounts)


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, ALL),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),  # Half a core is one, too.
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, ALL),
        ("0::/\n", {"cpu.max": "damaged\n"}, ALL),
        ("0::/\n", {}, ALL),
        ("damaged\n", {"cpu.max": "200000 100000\n"}, ALL),
        # A cgroup is bound by those that it is in.
        ("0::/pod/box\n", {"pod/cpu.max": "300000 100000", "pod/box/cpu.max": "max 100000"}, 3),
        # In a container without a namespace of its own the path is the host's, which is not there.
        ("0::/docker/0123abcd\n", {"cpu.max": "400000 100000"}, 4),
        # Version 1, and both at once.
        (
            "4:cpu,cpuacct:/box\n0::/\n",
            {"cpu,cpuacct/box/cpu.cfs_quota_us": "500000", "cpu,cpuacct/box/cpu.cfs_period_us": "100000"},
            5,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, ALL),
        ("4:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, ALL),
    ],
)
def test_a_cgroup_s_quota_bounds_the_cores(
    tmp_path: Path, cgroup: str, files: dict[str, str], expected: int
) -> None:
    assert cores_with(tmp_path, cgroup, files) == expected


def test_a_system_without_cgroups_has_all_of_its_cores(tmp_path: Path) -> None:
    assert available_cores(tmp_path / "nothing", tmp_path) == ALL


def test_threads_are_as_many_as_the_cores_unless_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchport_runtime.options.available_cores", lambda: 3)
    assert BackendOptions().thread_count == 3
    assert BackendOptions(threads=7).thread_count == 7
