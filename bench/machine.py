"""What the figures were measured on, without saying whose machine it is."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from bench.contenders import CORES
from bench.load import require_wrk
from torchport.store.machine import processor

BUSY_INTERVAL_S = 2.0
BUSY_PERCENT = 5.0
"""Of all cores: what a machine's own services take is less."""

PACKAGES = (
    "torchport",
    "torchserve",
    "mosec",
    "uvicorn",
    "uvloop",
    "httptools",
    "onnxruntime-gpu",
    "onnxruntime",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
)


def describe() -> dict[str, Any]:
    """Cores, processor, memory, system, versions; and how busy others kept the machine before it began."""
    return {
        "cores": CORES,
        "processor": processor(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "wrk": _wrk(),
        "busy_percent": psutil.cpu_percent(interval=BUSY_INTERVAL_S),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _wrk() -> str:
    """The first words of what it says about itself; it ends with 1 where it is asked for nothing else."""
    said = subprocess.run([require_wrk(), "--version"], capture_output=True, text=True, check=False)
    words = (said.stdout or said.stderr).split()
    return words[1] if len(words) > 1 else "unknown"
