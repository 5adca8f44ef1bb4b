"""A worker's process: started in a session of its own, killed with its children, and always reaped.

    process = Process(command, environment, pass_fds=(4, 5), name="worker 9000", ended=host.ended)
    process.kill()                       # ended(-9) follows on the event loop

Two threads own it until it is reaped: one reads its output, the other waits for its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import IO, cast

from torchport.server.dispatch.output import lines_of

logger = logging.getLogger(__name__)

OUTPUT_LINES = 60
"""Number of last output lines that are kept of a process, to explain its end."""

READ_REST_S = 0.5
"""Seconds to read the rest of the output after the end. A child outside its group may hold the pipe open."""


class Process:
    """A started process. `ended` is called with its exit code, on the event loop, once it is reaped.

    Make it on the event loop's thread: on Linux a child dies with the thread that started it.

    Raises:
        OSError, RuntimeError: the system allows no more processes or threads. Then nothing is left of it.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        pass_fds: Sequence[int],
        name: str,
        ended: Callable[[int], None],
    ) -> None:
        self._name, self._ended = name, ended
        self._loop = asyncio.get_running_loop()
        self._output: deque[str] = deque(maxlen=OUTPUT_LINES)
        self._reaping = threading.Lock()
        self._popen = subprocess.Popen(
            command,
            env=environment,
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            threading.Thread(target=self._wait, daemon=True).start()
        except BaseException:
            self.kill()
            self._popen.wait()
            raise

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def output(self) -> str:
        """Its last lines."""
        return "\n".join(self._output)

    def note(self, text: str) -> None:
        """Add to its last lines what it logged by another way."""
        self._output.extend(text.splitlines())

    def kill(self) -> None:
        """Kill the process and the children in its group; nothing happens once it is reaped."""
        with self._reaping:
            self._kill_group()

    def _kill_group(self) -> None:
        # Reaped, its number may be another's.
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)

    def _wait(self) -> None:
        """Wait in a thread for the process's end, then end the children that it has left, and reap it."""
        reader = threading.Thread(target=self._read_output, daemon=True)
        reader.start()
        if hasattr(os, "waitid"):
            # Not reaped yet, it keeps its group's number.
            os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOWAIT)
            with self._reaping:
                self._kill_group()
                self._popen.wait()
        code = self._popen.wait()
        reader.join(timeout=READ_REST_S)
        with contextlib.suppress(RuntimeError):  # The loop is closed: the front is ending.
            self._loop.call_soon_threadsafe(self._ended, code)

    def _read_output(self) -> None:
        with cast(IO[bytes], self._popen.stdout) as stream:
            for line in lines_of(stream):
                self._output.append(line)
                logger.info("[%s] %s", self._name, line)
