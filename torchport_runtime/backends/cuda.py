"""Counts and names CUDA devices by the driver, without any CUDA library.

cuda_device_count()          # 0 without a driver
device_index("cuda:1")       # 1
"""

from __future__ import annotations

import ctypes
import logging
import sys
from functools import cache

from torchport_runtime.errors import BackendError
from torchport_runtime.options import BackendOptions

logger = logging.getLogger(__name__)

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NAME_BYTES = 128


@cache
def cuda_device_count() -> int:
    """Number of the driver's CUDA devices; 0 without a driver.

    No CUDA library is loaded.
    """
    try:
        driver = ctypes.CDLL(_DRIVER)
        count = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
        return count.value
    except (OSError, AttributeError):
        return 0


def device_name(index: int) -> str:
    """The driver's name of a CUDA device; empty if it is missing.

    No CUDA library is loaded.
    """
    if index >= cuda_device_count():
        return ""
    name = ctypes.create_string_buffer(_NAME_BYTES)
    ctypes.CDLL(_DRIVER).cuDeviceGetName(name, _NAME_BYTES, index)
    return name.value.decode("utf-8", "replace")


def device_index(device: str) -> int:
    """The number of a CUDA device; plain `cuda` is the first."""
    return int(device.partition(":")[2] or 0)


def refuse_cuda(options: BackendOptions, reason: str) -> None:
    """Raise if CUDA was named; with `auto`, log the reason.

    Raises:
        BackendError: the device is not `auto`; the message has the reason.
    """
    if options.device != "auto":
        raise BackendError(
            f"device {options.device!r} was asked for, but {reason}: ask for cpu or auto, or mend that"
        )
    logger.info("running on the CPU: %s", reason)
