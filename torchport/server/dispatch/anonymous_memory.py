"""Memory without a file's name, which child processes can map, too.

file, memory = anonymous_memory("torchport-bodies", 1 << 30)      # or None
"""

from __future__ import annotations

import mmap
import os

try:
    import resource
except ImportError:  # There are no such limits on Windows, nor such files.
    resource = None  # type: ignore[assignment]


def anonymous_memory(name: str, size: int) -> tuple[int, mmap.mmap] | None:
    """A file of so many bytes in memory, and its mapping; None where they are not to be had.

    They are addresses until something is written. Where this process's addresses are limited (`ulimit -v`),
    they would be missing elsewhere, in this process and its children: there is none then.
    """
    if resource is not None and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return None
    try:
        file = os.memfd_create(name)
    except (AttributeError, OSError):
        return None
    try:
        os.ftruncate(file, size)
        return file, mmap.mmap(file, size)
    except OSError:
        os.close(file)
        return None
