"""A shadow's process, seen from the worker: starting it, handing it a sample, ending it.

    link = ShadowLink(folder)
    link.load(start, START_TIMEOUT_S)        # its backend is there
    result = link.compare(sample)
    link.close()

Use it in the thread that made it: on Linux the process ends with that thread. Only `kill` is for all.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import struct
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from torchport_runtime.errors import BackendError
from torchport_runtime.shadow.messages import SampledRows, ShadowResult, Start

COMPARE_LIMIT_S = 300
"""So long one look may take. It is that long because the process has only the time that nobody else wants:
what computes, and does not end, is ended far sooner, by the processor time that it takes."""
END_S = 10.0
"""So long a process that has closed its connection may take to end."""


class ComparisonTimeout(BackendError):
    """A look that came to no end. Its process is of no more use."""


class ShadowGone(BackendError):
    """The process ended by itself, or by somebody else."""


class ShadowLink:
    """One process, which imports this copy of the runtime, and a connection to it.

    Raises:
        BackendError: it cannot be started.
    """

    def __init__(self, folder: Path) -> None:
        ours, theirs = socket.socketpair()
        # A process that does not read must not hold a large sample for ever: writing has a limit, too.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", COMPARE_LIMIT_S, 0))
        # Nobody writes to it: its end, which no clean-up is needed for, says that this process is gone.
        lifeline, self._lifeline = os.pipe()
        self._connection = Connection(ours.detach())
        self._processor_s = math.inf
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    *("-P", "-m", "torchport_runtime.shadow.process"),
                    *(str(theirs.fileno()), str(lifeline)),
                ],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
                pass_fds=(theirs.fileno(), lifeline),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as err:
            self._disconnect()
            raise BackendError(f"the shadow backend's process cannot be started: {err}") from err
        finally:
            theirs.close()
            os.close(lifeline)

    @property
    def pid(self) -> int:
        return self._process.pid

    def load(self, start: Start, limit_s: float) -> None:
        """Let it load its backend.

        Raises:
            BackendError: an artifact, a library or a device that is not to be had; no answer in that time.
        """
        self._processor_s = start["processor_s"]
        try:
            self._connection.send(start)
            if not self._connection.poll(limit_s):
                raise BackendError(f"the shadow backend did not load within {limit_s:.0f} s")
            problem = self._connection.recv()
        except (EOFError, OSError) as err:
            reason = f"the shadow backend's process ended with {self._exit_code()} as it loaded"
            raise BackendError(reason) from err
        if problem:
            raise BackendError(f"shadow: {problem}")

    def compare(self, sample: SampledRows) -> ShadowResult:
        """Have these rows run again.

        Raises:
            ComparisonTimeout: it does not come to an end.
            ShadowGone: the process has ended.
        """
        try:
            self._connection.send(sample)
            if self._connection.poll(COMPARE_LIMIT_S):
                return ShadowResult(*self._connection.recv())
            raise ComparisonTimeout(f"no result within {COMPARE_LIMIT_S} s")
        except BlockingIOError as err:
            raise ComparisonTimeout(f"no rows were taken within {COMPARE_LIMIT_S} s") from err
        except (EOFError, OSError) as err:
            code = self._exit_code()
            if code == -signal.SIGPROF:
                raise ComparisonTimeout(f"more than {self._processor_s:g} s of processor time") from err
            raise ShadowGone(f"its process is gone (exit code {code}, {err!r})") from err

    def kill(self) -> None:
        """End the process now, whatever it is doing; waits for nothing."""
        self._process.kill()

    def close(self) -> None:
        """End the process, and wait for its end."""
        self._process.kill()
        self._disconnect()
        self._process.wait()

    def _disconnect(self) -> None:
        self._connection.close()
        os.close(self._lifeline)

    def _exit_code(self) -> int | None:
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return None
