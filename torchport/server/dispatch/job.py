"""A request on its way from an API through a model's queue to a worker, and back."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable
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
    """Where a request's answer goes. `answered` or `failed` is called once, `streamed` any times before."""

    @property
    def is_gone(self) -> bool: ...

    def answered(self, job: Job, answer: Answer) -> None: ...

    def streamed(self, job: Job, piece: Answer) -> None: ...

    def failed(self, job: Job, error: Exception) -> None: ...


class Route(Protocol):
    """Where requests and their answers are counted."""

    def answered(self, job: Job) -> None: ...


class Job:
    """A queued request, and the caller that gets its answer.

    `alone` says that it goes to a worker by itself, because the batch that it was in cost a worker its
    life; `losses` counts the workers that died, or hung, while they had it. `route` counts the answer.
    `leaving` tells the worker that has it as a live row to compute nothing more for it. `was_live`: whether
    it has ever been such a row.
    """

    __slots__ = (
        "__weakref__",
        "alone",
        "caller",
        "enqueued",
        "is_done",
        "kind",
        "leaving",
        "losses",
        "queued",
        "route",
        "row",
        "started",
        "streams",
        "timer",
        "was_live",
    )

    def __init__(
        self, kind: Kind, row: Row | InferRow, caller: Caller, *, route: Route | None = None
    ) -> None:
        self.kind, self.row, self.caller, self.route = kind, row, caller, route
        self.enqueued = time.monotonic()
        self.started = self.enqueued
        self.timer: asyncio.TimerHandle | None = None
        self.queued = self.alone = self.is_done = self.streams = self.was_live = False
        self.leaving: Callable[[], None] | None = None
        self.losses = 0

    def finish(self, answer: Answer) -> None:
        """Deliver the answer, or its last piece. A second call does nothing."""
        if self._is_first_end():
            if self.route is not None:
                self.route.answered(self)
            self.caller.answered(self, answer)

    def stream(self, piece: Answer) -> None:
        """Deliver a piece of the answer; `finish` delivers the last one."""
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

    def leave(self) -> None:
        """Note that the client is gone. A worker that streams to it stops; a queue finds out by itself."""
        leaving, self.leaving = self.leaving, None
        if leaving is not None:
            leaving()

    def leaver(self) -> Callable[..., None]:
        """`leave`, for whom the job's caller refers to.

        It does not refer to the job: a circle would keep a body until a garbage collection.
        """
        found = weakref.ref(self)

        def leave(*_: object) -> None:
            job = found()
            if job is not None:
                job.leave()

        return leave

    def _is_first_end(self) -> bool:
        self.leave()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        first, self.is_done = not self.is_done, True
        return first


class Waiter:
    """A caller whose answer, or its pieces, can be awaited.

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
