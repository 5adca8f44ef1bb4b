"""What of a machine can change a model's numbers: the processor, its instruction sets, its GPUs.

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
    """The same on the same kind of machine; `instructions` stands for the set that the processor has."""
    return {
        "architecture": platform.machine(),
        "processor": processor(),
        "instructions": sha256_json(sorted(_cpuinfo("flags") or _cpuinfo("Features")))[:16],
        "gpus": gpus(),
    }


def processor() -> str:
    """The processor's name; what the system calls it where that is all there is."""
    return " ".join(_cpuinfo("model name")) or platform.processor() or platform.machine()


def gpus() -> list[str]:
    """The names of the CUDA devices, by the driver; loads no CUDA library."""
    return [device_name(index) for index in range(cuda_device_count())]


def _cpuinfo(key: str) -> list[str]:
    """The words of the first processor's line of that name."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.is_file() else []
    for line in lines:
        name, _, text = line.partition(":")
        if name.strip() == key:
            return text.split()
    return []
