"""The temporary folder into which a server unpacks its archives.

A folder that a killed server left behind is removed by the next server that starts.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "torchport-serve-"
_YOUNG_S = 60.0
"""Age in seconds up to which a folder may belong to a server that has not locked it yet."""


class WorkFolder:
    """A server's own folder, locked until removed or until the process ends."""

    def __init__(self) -> None:
        remove_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = FileLock(self.path / ".lock")
        self._lock.acquire()

    def remove(self) -> None:
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def remove_abandoned() -> None:
    """Remove folders whose server is gone."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, Timeout):  # Another user's, or one that is in use.
            if time.time() - path.stat().st_mtime > _YOUNG_S:
                with FileLock(path / ".lock", timeout=0):
                    shutil.rmtree(path, ignore_errors=True)
