"""Ends a child process with its parent, and describes how it ended.

end_with_parent(lifeline)            # in the child: the reading end of a pipe that is never written to
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
    """End this process, and the group that it leads, when its parent ends.

    A parent's end by SIGKILL counts too. `lifeline` is a pipe's reading end, whose other end the parent
    alone holds. On Linux the kernel also ends this process, when the thread that started it ends.
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
    """Describe an exit code of `subprocess`, to follow "it"."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
