"""A shadow's process, seen from the worker: start, comparisons, end.

    link = ShadowLink(folder)
    link.load(start, START_TIMEOUT_S)        # its backend is there
    result = link.compare(sample)
    link.close()

Use a link in the thread that made it: on Linux the process ends with that thread. Only `kill` may be
called from any thread.
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
"""Maximum seconds of one comparison; then its process is ended. It is long because the process only gets
idle processor time. An endless computation is ended far sooner, by its processor time."""
END_S = 10.0
"""Seconds that a process has to end after it has closed its connection."""


class ComparisonTimeout(BackendError):
    """A comparison that took too long; its process is unusable."""


class ShadowGone(BackendError):
    """The process ended without being told to."""


class ShadowLink:
    """A process that imports this copy of the runtime, and its connection.

    Raises:
        BackendError: the process cannot be started.
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
        """Let the process load its backend, within `limit_s` seconds.

        Raises:
            BackendError: an artifact, a library or a device is missing, or the time is over.
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
        """Let the process run these rows again and compare.

        Raises:
            ComparisonTimeout: the comparison took too long.
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
        """Kill the process, without waiting for its end."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process, and wait for its end."""
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
