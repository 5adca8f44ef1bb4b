"""The worker's command: `python -P -m torchport.server.worker SOCKET LIFELINE REQUESTS ANSWERS`.

All arguments are inherited file descriptors. SOCKET is this end of the socket pair with the front.
LIFELINE is a pipe that nothing is written to. When it closes, the front is gone, and this process ends,
whatever it is doing. REQUESTS and ANSWERS are files of shared memory, or -1.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
from typing import Any

from torchport.child_process import end_with_parent
from torchport.server.wire import HEADER, MAX_FRAME, Report, decode_order
from torchport.server.worker.log_reports import WorkerLog
from torchport.server.worker.sanitizing import safe_frame
from torchport.server.worker.shared_memory import SharedMemory

_READ_SIZE = 1 << 16
PENDING_EVERY_S = 0.05
"""Seconds between two checks of an idle worker for pending metrics."""


def main() -> None:
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    end_with_parent(int(sys.argv[2]))
    log = WorkerLog(channel.send)
    log.install()
    from torchport.server.worker.serving import Models

    models = Models(channel.send, log, SharedMemory(int(sys.argv[3]), int(sys.argv[4])))
    while True:
        if models.has_live_rows:
            # What joins and leaves does so before the next step; of batches only one goes before it.
            while channel.has_order(0) and models.obey(channel.receive()):
                pass
            models.step()
            continue
        while models.has_pending_metrics and not channel.has_order(PENDING_EVERY_S):
            models.send_pending_metrics()
        models.obey(channel.receive())


class Channel:
    """This process's end of the socket pair.

    An order comes in one read, unless it is a large one.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = memoryview(bytearray(_READ_SIZE))
        self._filled = 0
        # A handler's threads may log, and send pieces of a stream: no report must begin inside another one.
        self._sending = threading.Lock()

    def send(self, *reports: Report) -> None:
        """Send reports, by one write: a step of many live rows wakes the front once."""
        frames = [safe_frame(report) for report in reports]
        with self._sending:
            self._socket.sendall(frames[0] if len(frames) == 1 else b"".join(frames))

    def has_order(self, seconds: float) -> bool:
        """Whether an order has arrived; waits `seconds` for it at most."""
        return bool(self._filled) or bool(select.select([self._socket], [], [], seconds)[0])

    def receive(self) -> Any:
        """Return the next order; end the process if the channel is closed."""
        self._fill(HEADER.size)
        (length,) = HEADER.unpack_from(self._buffer)
        if length > MAX_FRAME:
            raise SystemExit(f"a frame of {length} bytes: the channel is damaged")
        end = HEADER.size + length
        if end > len(self._buffer):
            return decode_order(self._receive_large(length))
        self._fill(end)
        order = decode_order(self._buffer[HEADER.size : end])
        left = self._filled - end
        if left:
            self._buffer[:left] = bytes(self._buffer[end : self._filled])
        self._filled = left
        return order

    def _receive_large(self, length: int) -> bytearray:
        """Receive an order too large for the buffer, which holds its beginning."""
        frame = bytearray(length)
        at = self._filled - HEADER.size
        frame[:at] = self._buffer[HEADER.size : self._filled]
        self._filled = 0
        with memoryview(frame) as view:
            while at < length:
                at += self._read(view[at:])
        return frame

    def _fill(self, count: int) -> None:
        while self._filled < count:
            self._filled += self._read(self._buffer[self._filled :])

    def _read(self, into: memoryview) -> int:
        got = self._socket.recv_into(into)
        if got == 0:
            # Not sys.exit: a library's atexit hook must not keep a worker that nobody needs.
            os._exit(0)
        return got


if __name__ == "__main__":
    try:
        main()
    except SystemExit as err:
        # A handler ends its process. Threads of its own must not keep a worker that answers nothing more.
        code = err.code if isinstance(err.code, int) else int(err.code is not None)
        with contextlib.suppress(Exception):  # A handler may have closed or replaced them.
            if code and not isinstance(err.code, int):
                print(err.code, file=sys.stderr)
            sys.stdout.flush()
        os._exit(code & 0xFF)
