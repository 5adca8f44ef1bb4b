"""Cleans up after whoever started a server for a while and was killed: a TorchServe is stopped, torchport's
own server, which ends by itself, is waited for, and the folder of both is removed.

    with guard(run):
        with start(store, run) as server: ...

The guard is a process that waits for the end of its standard input, which is this process's end.
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
"""A server that was just being started writes down its pid within this time, on a busy machine too."""


@contextmanager
def guard(run: Path) -> Iterator[None]:
    """While inside, should this process be killed, a server with this run folder is seen to its end, and the
    run folder's parent, which is taken for a temporary folder of this process, is removed."""
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
    """Wait, then stop what is left."""
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
