"""Cleans up a temporary server if the process that started it dies.

    with guard(run):
        with start(store, run) as server: ...

A TorchServe is stopped. torchport's own server ends by itself, and is waited for. The folder of both is
removed. The guard is a process that waits for the end of its standard input, which is this process's
end.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchport.targets.torchserve import launched, running

GRACE_S = 60.0
"""Maximum seconds until a starting server has written down its pid. A server that takes longer, on a busy
machine say, is not stopped."""


@contextmanager
def guard(run: Path) -> Iterator[None]:
    """Clean up after a server if this process is killed.

    The guard waits for the end of the server with the run folder `run`, or stops it. Then it removes
    that folder's parent, which it takes for a temporary folder of this process.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "torchport.targets.guard", str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.communicate(b"ended, and cleaned up after itself")


def main() -> None:
    """Wait until the starting process ends, then stop what is left."""
    run = Path(sys.argv[1])
    if sys.stdin.read():
        return
    deadline = time.monotonic() + (GRACE_S if run.is_dir() else 0)
    own = run / "server.log"
    while time.monotonic() < deadline:
        server = None if own.is_file() else running(run) or launched(run)
        if server is not None:
            server.stop()
            break
        if own.is_file() and not (run / "server.json").is_file():
            break
        time.sleep(0.1)
    shutil.rmtree(run.parent, ignore_errors=True)


if __name__ == "__main__":
    main()
