"""Workers without processes, and an event loop that a test moves on: any interleaving, in microseconds.

The workers stand at the end of real socket pairs; what they do next, and when a thread ends, the test says.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, cast

from torchport.server.dispatch.host import WorkerHost
from torchport.server.wire import (
    HEADER,
    Answer,
    Answered,
    Infer,
    Join,
    Leave,
    Left,
    Load,
    Loaded,
    LoadFailed,
    Partial,
    Predict,
    decode_order,
    encode_frame,
)


class SteppedLoop(asyncio.SelectorEventLoop):
    """Runs only in `turn`. Its clock moves only by `pass_time`; a thread's work is done when a test says."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.threads: list[tuple[asyncio.Future[Any], Callable[[], Any]]] = []
        self.processes: list[ImaginedProcess] = []
        """Those that have not ended."""
        self.errors: list[Mapping[str, Any]] = []
        super().__init__()
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    def time(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        future = self.create_future()
        self.threads.append((future, lambda: func(*args)))
        return future

    async def in_own_thread(self, func: Callable[[], Any]) -> Any:
        return await self.run_in_executor(None, func)

    def end_thread(self, index: int) -> None:
        future, work = self.threads.pop(index)
        try:
            result = work()
        except Exception as err:
            future.set_exception(err)
        else:
            if not future.cancelled():
                future.set_result(result)

    def turn(self) -> None:
        """One turn: what is ready now."""
        self.call_soon(self.stop)
        self.run_forever()

    def settle(self) -> None:
        """Turn until nothing is ready any more, here or at a worker."""
        quiet = 0
        while quiet < 3:
            self.turn()
            busy = [process.notices() for process in list(self.processes)]
            quiet = 0 if any(busy) or self._ready else quiet + 1  # type: ignore[attr-defined]


class ImaginedProcess:
    """Stands for a worker's `Process`. It ends when its channel or its lifeline does, unless it is stuck."""

    _pids = count(100_000)

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        pass_fds: Sequence[int],
        name: str,
        ended: Callable[[int], None],
    ) -> None:
        self.pid, self.output, self.is_stuck = next(self._pids), "", False
        self._ended = ended
        self._loop = cast(SteppedLoop, asyncio.get_running_loop())
        self.host = cast(WorkerHost, ended.__self__)  # type: ignore[attr-defined]
        channel, lifeline, *_ = pass_fds
        self._channel = socket.socket(fileno=os.dup(channel))
        self._channel.setblocking(False)
        self._lifeline = os.dup(lifeline)
        os.set_blocking(self._lifeline, False)
        self._buffer = bytearray()
        self.orders: list[Any] = []
        self.rows: list[int] = []
        """Live rows of a model that streams."""
        self._loop.processes.append(self)

    def notices(self) -> bool:
        """Read what has come; end if the front has closed. Whether anything happened."""
        if self.is_stuck:
            return False
        try:
            if os.read(self._lifeline, 1) == b"":
                self.end(0)
                return True
        except BlockingIOError:
            pass
        try:
            data = self._channel.recv(1 << 20)
        except BlockingIOError:
            return False
        if not data:
            self.end(0)
            return True
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer)
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            self.orders.append(decode_order(bytes(self._buffer[HEADER.size : end])))
            del self._buffer[:end]
        return True

    def work(self, *, can_load: bool) -> None:
        """Do what the next order says; without one, end a live row."""
        order = self.orders.pop(0) if self.orders else None
        if isinstance(order, Load) and can_load:
            self._slot = order.slot
            self._report(Loaded(order.slot, "imagined", b"", order.model == "streaming"))
        elif isinstance(order, Load):
            self._report(LoadFailed(order.slot, "ValueError: it cannot", "a traceback"))
        elif isinstance(order, Predict | Infer):
            answers = [Answer(200, b"answered") for _ in order.rows]
            self._report(Answered(order.slot, order.batch, answers, [], 0))
        elif isinstance(order, Join):
            self.rows.append(order.batch)
        elif self.rows and (order is None or (isinstance(order, Leave) and order.batch in self.rows)):
            number = self.rows[0] if order is None else order.batch
            self.rows.remove(number)
            self._report(Left(self._slot, number, Answer(200, b"last"), [], 0))

    def send_pieces(self) -> None:
        """Make a step of the live rows: each sends a piece."""
        for number in self.rows:
            self._report(Partial(self._slot, number, 0, Answer(200, b"piece")))

    def _report(self, report: Any) -> None:
        try:
            self._channel.send(encode_frame(report))
        except OSError:  # The front has closed it meanwhile.
            self.end(0)

    def end(self, code: int) -> None:
        if self in self._loop.processes:
            self._loop.processes.remove(self)
            self._channel.close()
            os.close(self._lifeline)
            self._loop.call_soon(self._ended, code)

    def kill(self) -> None:
        self.end(-signal.SIGKILL)
