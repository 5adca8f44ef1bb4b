"""A queued request, and the caller that gets its answer."""

from __future__ import annotations

import asyncio
import time
from enum import Enum
from typing import Protocol

from torchport.server.wire import Answer, InferRow, Row


class Kind(Enum):
    """Kind of a request; different kinds never share a batch.

    TorchServe's handlers look at a batch's first row only.
    """

    PREDICT = "predict"
    EXPLAIN = "explain"
    DESCRIBE = "describe"
    TENSORS = "tensors"


class Caller(Protocol):
    """Receives the answer to a request.

    Either `answered` or `failed` is called, once, unless the caller is gone. `streamed` is called before,
    any number of times.
    """

    @property
    def is_gone(self) -> bool: ...

    def answered(self, job: Job, answer: Answer) -> None: ...

    def streamed(self, job: Job, piece: Answer) -> None: ...

    def failed(self, job: Job, error: Exception) -> None: ...


class Job:
    """A request and its caller.

    `alone`: whether the request must be a batch by itself, because a worker died with its last batch.
    `losses`: number of workers that died or hung with the request.
    """

    __slots__ = (
        "alone",
        "caller",
        "enqueued",
        "is_done",
        "kind",
        "losses",
        "queued",
        "row",
        "started",
        "streams",
        "timer",
    )

    def __init__(self, kind: Kind, row: Row | InferRow, caller: Caller) -> None:
        self.kind, self.row, self.caller = kind, row, caller
        self.enqueued = time.monotonic()
        self.started = self.enqueued
        self.timer: asyncio.TimerHandle | None = None
        self.queued = self.alone = self.is_done = self.streams = False
        self.losses = 0

    def finish(self, answer: Answer) -> None:
        """Deliver the answer, or its last piece; later calls do nothing."""
        if self._is_first_end():
            self.caller.answered(self, answer)

    def stream(self, piece: Answer) -> None:
        """Deliver one piece of the answer; `finish` delivers the last one."""
        if not self.is_done:
            self.streams = True
            self.caller.streamed(self, piece)

    def fail(self, error: Exception) -> None:
        """Deliver an error instead of an answer."""
        if self._is_first_end():
            self.caller.failed(self, error)

    def forget(self) -> None:
        """Drop the request: its client has disconnected."""
        self._is_first_end()

    def _is_first_end(self) -> bool:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        first, self.is_done = not self.is_done, True
        return first


class Waiter:
    """A caller whose answer, or pieces of it, can be awaited.

    waiter = Waiter()
    version.submit(Kind.PREDICT, row, waiter)
    answer = await waiter.answer
    """

    def __init__(self) -> None:
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.pieces: asyncio.Queue[Answer] = asyncio.Queue()

    @property
    def is_gone(self) -> bool:
        return self.answer.cancelled()

    def answered(self, job: Job, answer: Answer) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)

    def streamed(self, job: Job, piece: Answer) -> None:
        self.pieces.put_nowait(piece)

    def failed(self, job: Job, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
