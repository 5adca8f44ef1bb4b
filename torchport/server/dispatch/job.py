"""One request on its way: from the API that took it, through a model's queue, to a worker and back."""

from __future__ import annotations

import asyncio
import time
from enum import Enum
from typing import Protocol

from torchport.server.wire import Answer, InferRow, Row


class Kind(Enum):
    """Requests of different kinds never share a batch: TorchServe's handlers look at the first row only."""

    PREDICT = "predict"
    EXPLAIN = "explain"
    DESCRIBE = "describe"
    TENSORS = "tensors"


class Caller(Protocol):
    """Who wants the answer. One of `answered` and `failed` is called once, `streamed` any times before."""

    @property
    def is_gone(self) -> bool: ...

    def answered(self, job: Job, answer: Answer) -> None: ...

    def streamed(self, job: Job, piece: Answer) -> None: ...

    def failed(self, job: Job, error: Exception) -> None: ...


class Job:
    """A request, and who gets its answer.

    `alone` says that it goes to a worker by itself, because the batch that it was in cost a worker its
    life; `losses` counts the workers that died, or hung, while they had it.
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
        """Deliver the answer, or the last piece of one; after the first time nothing happens."""
        if self._is_first_end():
            self.caller.answered(self, answer)

    def stream(self, piece: Answer) -> None:
        """Deliver a piece; `finish` brings the last one."""
        if not self.is_done:
            self.streams = True
            self.caller.streamed(self, piece)

    def fail(self, error: Exception) -> None:
        """Deliver an error in the answer's place."""
        if self._is_first_end():
            self.caller.failed(self, error)

    def forget(self) -> None:
        """Deliver nothing: nobody is there."""
        self._is_first_end()

    def _is_first_end(self) -> bool:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        first, self.is_done = not self.is_done, True
        return first


class Waiter:
    """A caller that awaits the answer, or all pieces of it.

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
