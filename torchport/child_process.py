"""A process that another one of ours has started: how it ends with that one, and how it has ended.

end_with_parent(lifeline)            # in the child: the reading end of a pipe that nobody writes to
how_it_ended(process.returncode)     # in the parent: "was ended by SIGKILL"
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1


def end_with_parent(lifeline: int) -> None:
    """End this process, and the group that it leads, when the one that started it ends, by SIGKILL too.

    `lifeline` is a pipe's reading end, whose other end that process alone holds. On Linux the kernel sees
    to it as well, when the thread ends that started this process.
    """
    if sys.platform == "linux":
        # For a process whose threads cannot run: a library that keeps the interpreter's lock.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        os.read(lifeline, 1)
        with contextlib.suppress(OSError):
            os.killpg(0, signal.SIGKILL)  # Its own children go with it.
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def how_it_ended(code: int) -> str:
    """What an exit code of `subprocess` says, to follow "it"."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
