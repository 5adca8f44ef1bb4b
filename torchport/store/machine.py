"""Properties of a machine that can change a model's numbers: processor, instruction sets, GPUs.

describe()        # {"architecture": "x86_64", "processor": "...", "instructions": "9f86d0...", "gpus": []}
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from torchport.store.hashing import sha256_json
from torchport_runtime.backends.cuda import cuda_device_count, device_name

_CPUINFO = Path("/proc/cpuinfo")


def describe() -> dict[str, Any]:
    """A description that is equal on machines of the same kind.

    `instructions` is a digest of the processor's instruction sets.
    """
    return {
        "architecture": platform.machine(),
        "processor": processor(),
        "instructions": sha256_json(sorted(_cpuinfo("flags") or _cpuinfo("Features")))[:16],
        "gpus": gpus(),
    }


def processor() -> str:
    """The processor's name, or else the system's name for its kind."""
    return " ".join(_cpuinfo("model name")) or platform.processor() or platform.machine()


def gpus() -> list[str]:
    """The names of the CUDA devices, asked of the driver.

    It loads no CUDA library.
    """
    return [device_name(index) for index in range(cuda_device_count())]


def _cpuinfo(key: str) -> list[str]:
    """The words after a key in the first processor's entry of `/proc/cpuinfo`."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.is_file() else []
    for line in lines:
        name, _, text = line.partition(":")
        if name.strip() == key:
            return text.split()
    return []
