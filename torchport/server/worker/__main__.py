"""`python -P -m torchport.server.worker SOCKET LIFELINE`: two inherited file descriptors.

The first is this end of the socket pair with the front. The second is a pipe that nobody writes to:
its end says that the front is gone, and then this process goes too, whatever it is doing.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from typing import Any

from torchport.server.wire import HEADER, MAX_FRAME, decode_order, encode_frame

_PR_SET_PDEATHSIG = 1


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    die_with_front(int(sys.argv[2]))
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    from torchport.server.worker.serving import Models

    models = Models(lambda report: send(channel, report))
    while True:
        models.obey(receive(channel))


def receive(channel: socket.socket) -> Any:
    """The next order; ends the process where the front has closed its end."""
    (length,) = HEADER.unpack(_receive_exactly(channel, HEADER.size))
    if length > MAX_FRAME:
        raise SystemExit(f"a frame of {length} bytes: the channel is damaged")
    return decode_order(_receive_exactly(channel, length))


def _receive_exactly(channel: socket.socket, count: int) -> bytearray:
    buffer = bytearray(count)
    view, filled = memoryview(buffer), 0
    while filled < count:
        got = channel.recv_into(view[filled:])
        if got == 0:
            # Not sys.exit: a library's atexit hook must not keep a worker that nobody needs.
            os._exit(0)
        filled += got
    return buffer


def send(channel: socket.socket, report: Any) -> None:
    channel.sendall(encode_frame(report))


def die_with_front(lifeline: int) -> None:
    """End this process when the front ends, by SIGKILL too."""
    if sys.platform == "linux":
        # For a worker whose threads cannot run: a library that keeps the interpreter's lock.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        os.read(lifeline, 1)
        with contextlib.suppress(OSError):
            os.killpg(0, signal.SIGKILL)  # This worker leads its group: its own children go with it.
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


if __name__ == "__main__":
    main()
