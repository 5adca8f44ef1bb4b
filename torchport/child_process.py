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
    alone holds. On Linux the kernel kills the group, also one that is stopped, or a process whose threads
    cannot run because a library keeps the interpreter's lock.
    """
    os.set_inheritable(lifeline, False)
    if sys.platform == "linux" and not _killed_by(lifeline):
        # The second best: this process alone ends, perhaps before its thread has ended the group.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        os.read(lifeline, 1)
        with contextlib.suppress(OSError):
            os.killpg(0, signal.SIGKILL)  # Its own children go with it.
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def _killed_by(lifeline: int) -> bool:
    """Have the kernel send SIGKILL to this process's group when the pipe closes. Whether it can."""
    import fcntl  # Windows has none.

    try:
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    except OSError:
        return False
    return True


def how_it_ended(code: int) -> str:
    """Describe an exit code of `subprocess`, to follow "it"."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
