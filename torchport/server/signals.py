"""The signals that end a server: the first one in good order, a second one at once.

    signals = Signals(begun=registry_drains, left=remove_traces)
    signals.listen(loop)
    await signals.received.wait()

A second signal is taken by a thread, because the event loop or the interpreter's threads may hang by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

LIFELINE = "TORCHPORT_SERVER_LIFELINE"
"""Variable with the number of a file descriptor: the server ends when its other side is closed."""

REPEATED_S = 0.3
"""Seconds after the first signal in which others are the same one: a terminal sends Ctrl-C to every process
of its group, and a parent that waits for this one may forward its own."""

_ENDING = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Waits for SIGTERM, SIGINT, and the end of who started the server.

    Args:
        begun: called on the event loop at the first signal.
        left: called in any thread before a second signal ends the process.
    """

    def __init__(self, begun: Callable[[], None], left: Callable[[], None]) -> None:
        self._begun, self._left = begun, left
        self.received = asyncio.Event()
        self._since = 0.0

    def listen(self, patience: float) -> None:
        """Listen on the running event loop.

        `patience` is the number of seconds for an orderly end without the process that started this one.
        Beyond, this process ends whatever it is doing.
        """
        loop = asyncio.get_running_loop()
        for number in _ENDING:
            loop.add_signal_handler(number, self._signalled, number)
        if LIFELINE in os.environ:
            descriptor = int(os.environ.pop(LIFELINE))

            def watch() -> None:
                with contextlib.suppress(OSError):
                    os.read(descriptor, 1)
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._begin, signal.SIGTERM)
                # Should the event loop be stuck, nobody is there any more to end this.
                time.sleep(patience)
                os._exit(1)

            threading.Thread(target=watch, name="lifeline", daemon=True).start()

    def _signalled(self, number: int) -> None:
        if self.received.is_set():
            self._leave(number)
        else:
            self._begin(number)

    def _begin(self, number: int) -> None:
        if self.received.is_set():
            return
        logger.info(
            "%s: answering what was taken, then ending; a second signal ends it at once",
            signal.Signals(number).name,
        )
        self._since = time.monotonic()
        self.received.set()
        self._begun()
        self._watch_for_second()

    def _watch_for_second(self) -> None:
        """Have the next signal's number written to a pipe, by the interpreter's C handler."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

        def watch() -> None:
            while number := os.read(reading, 1):
                if number[0] in _ENDING:
                    self._leave(number[0])

        threading.Thread(target=watch, name="second-signal", daemon=True).start()

    def _leave(self, number: int) -> None:
        if time.monotonic() - self._since < REPEATED_S:
            return
        # Nothing is logged: whoever reads the log may be what hangs.
        self._left()
        os._exit(128 + number)
