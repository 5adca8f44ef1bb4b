"""The workers of one model version: started, replaced and ended.

    pool = WorkerPool(spec_for, observer)
    pool.scale(2)
    worker = pool.idle_worker()          # None while all are busy or starting

A worker that dies after it has loaded its model is replaced at once. One that could not load its model is
started again after growing pauses, so that a broken archive never spins.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from torchport.server.dispatch.host import SharedHosts
from torchport.server.dispatch.job import Job
from torchport.server.dispatch.worker import State, WorkerProcess, WorkerSpec
from torchport.server.wire import MetricValue

logger = logging.getLogger(__name__)

BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Seconds to wait after the first, second, ... failed start in a row. The last value repeats."""

KILLED_STARTS = 3
"""Maximum number of starts in a row that end by a SIGKILL from outside; more count as failures. The signal
may be an operator's, or the kernel's because memory is short, which would go on for ever."""


MAX_REFUSAL = 1000
"""Maximum number of characters of a reason that clients get."""

FAILED_RESTARTS = 3
"""Number of failed starts in a row after which a model that was loaded before cannot be loaded again."""


class Observer(Protocol):
    """Receives the events of a pool."""

    def worker_free(self) -> None: ...

    def worker_lost(self) -> None: ...

    def batch_done(self, jobs: list[Job], samples: list[MetricValue]) -> None: ...
    def sampled(self, samples: list[MetricValue]) -> None: ...

    def batch_returned(self, jobs: list[Job]) -> None: ...

    def batch_lost(self, jobs: list[Job], reason: str, *, blameless: bool, hung: bool) -> None: ...

    def pool_changed(self) -> None: ...


class WorkerPool:
    """Keeps `wanted` workers alive.

    Args:
        hosts: the processes that workers share, if their spec says so.
        spec_for: the spec of a worker for a wanted number of workers, on which its threads depend.
        recycle_after: number of requests after which a worker is replaced; 0: never.
        recycle_above: resident bytes above which a worker is replaced; 0: never.
        first_alone: whether the first worker starts alone, and the others once it is ready.
    """

    def __init__(
        self,
        spec_for: Callable[[int], WorkerSpec],
        observer: Observer,
        *,
        hosts: SharedHosts,
        recycle_after: int = 0,
        recycle_above: int = 0,
        first_alone: bool = False,
    ) -> None:
        self._spec_for, self._observer, self._hosts = spec_for, observer, hosts
        self._recycle_after, self._recycle_above = recycle_after, recycle_above
        self._first_alone = first_alone
        self.wanted = 0
        self.workers: list[WorkerProcess] = []
        self.failure = ""
        """Why the last failed worker ended; empty once a worker is ready again."""
        self.failed_starts = 0
        self.refusal = ""
        """Why the last failed start failed, in a line."""
        self.has_been_ready = False
        """Whether a worker has ever loaded the model."""
        self._killed_starts = 0
        self._idle: deque[WorkerProcess] = deque()
        self._successor: WorkerProcess | None = None
        """A starting worker that will replace another one. It counts once it is ready."""
        self._retry: asyncio.TimerHandle | None = None
        self._starting: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    @property
    def ready(self) -> list[WorkerProcess]:
        """Workers that have loaded their model."""
        return [w for w in self.workers if w.state in (State.READY, State.BUSY)]

    @property
    def cannot_load(self) -> bool:
        """Whether no worker is ready, and the next one is not expected to be either.

        A model that was loaded before gets more tries: what keeps it may be over soon.
        """
        return self.failed_starts >= (FAILED_RESTARTS if self.has_been_ready else 1) and not self.ready

    def scale(self, wanted: int) -> None:
        """Start or end workers until there are `wanted` of them.

        Busy workers finish their batch first. If the new number changes the threads per worker, running
        workers are replaced one after another.
        """
        self.wanted = wanted
        self.failed_starts = 0
        self._cancel_retry()
        if self._successor is not None:
            self._successor.stop()
            self._successor = None
        self._settle()
        self._tell_change()

    def idle_worker(self, *, alone: bool = False) -> WorkerProcess | None:
        """Take a worker that has room for a row; None while all are busy or starting.

        Those that stream may have live rows already, unless `alone`.
        """
        for _ in range(len(self._idle)):
            worker = self._idle.popleft()
            if worker.state is State.READY or (worker.room and not alone):
                return worker
            if worker.room:
                self._idle.append(worker)
        return None

    def put_back(self, worker: WorkerProcess) -> None:
        """Return an idle worker that was not needed."""
        self._idle.appendleft(worker)

    def note_room(self, worker: WorkerProcess) -> None:
        """Put a worker behind the others that have room, if it has any."""
        if worker.room and worker not in self._idle:
            self._idle.append(worker)

    async def wait_ready(self, count: int | None, timeout: float) -> bool:
        """Whether `count` workers became ready within `timeout` seconds; None: as many as are wanted.

        Returns early if a start fails, or if fewer are wanted by now.
        """
        try:
            async with asyncio.timeout(timeout):
                while not self._has(count) and (count or 0) <= self.wanted and self.failed_starts == 0:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self._has(count)

    def _has(self, count: int | None) -> bool:
        return len(self.ready) >= (self.wanted if count is None else count)

    async def close(self, grace: float) -> None:
        """End all workers; busy ones have `grace` seconds to finish."""
        self.scale(0)
        try:
            async with asyncio.timeout(grace):
                while self.workers:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            for worker in self.workers:
                worker.kill()
            while self.workers:
                self._changed.clear()
                await self._changed.wait()

    def _alive(self) -> list[WorkerProcess]:
        """Workers that count towards `wanted`."""
        return [w for w in self.workers if w.state is not State.STOPPING and w is not self._successor]

    def _settle(self) -> None:
        """Start or stop workers towards `wanted`; called at each change."""
        alive = self._alive()
        # It answers sooner with the cores to itself, and a model that cannot be loaded fails once.
        wanted = min(self.wanted, 1) if self._first_alone and not self.has_been_ready else self.wanted
        for _ in range(wanted - len(alive)):
            if self._retry is not None:
                break
            self._start()
        # Those that start, then those that are idle, go first: they cost nobody a wait.
        order = sorted(alive, key=lambda w: (w.state is State.BUSY, w.state is State.READY))
        for worker in order[: max(0, len(alive) - self.wanted)]:
            worker.stop()
        self._replace_one()

    def _start(self) -> WorkerProcess:
        worker = WorkerProcess(self._spec_for(max(1, self.wanted)), self, self._hosts)
        self.workers.append(worker)
        task = asyncio.get_running_loop().create_task(worker.start())
        self._starting.add(task)
        task.add_done_callback(lambda done: self._launched(worker, done))
        return worker

    def _launched(self, worker: WorkerProcess, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            worker.state, worker.failure = State.GONE, f"the process could not be started: {error}"
            self.worker_gone(worker, [], [], worker.failure)

    def _replace_one(self) -> None:
        """Start a successor if all workers run and one is due.

        The old worker ends when its successor is ready, so that capacity never shrinks.
        """
        alive = self._alive()
        complete = len(alive) == self.wanted and all(w.state in (State.READY, State.BUSY) for w in alive)
        if complete and self._successor is None and self._retry is None and self._due():
            self._successor = self._start()

    def _due(self) -> list[WorkerProcess]:
        spec = self._spec_for(max(1, self.wanted))
        return [worker for worker in self._alive() if self._is_due(worker, spec)]

    def _is_due(self, worker: WorkerProcess, spec: WorkerSpec) -> bool:
        over_age = self._recycle_after and worker.served >= self._recycle_after
        over_memory = self._recycle_above and worker.memory > self._recycle_above
        return bool(over_age or over_memory or worker.spec.environment != spec.environment)

    # What workers tell.

    def worker_ready(self, worker: WorkerProcess) -> None:
        self.failed_starts, self._killed_starts, self.failure = 0, 0, ""
        self.has_been_ready = True
        self._idle.append(worker)
        if worker is self._successor:
            self._successor = None
            for old in self._due()[:1]:
                old.stop()
        self._settle()
        self._tell_change()
        self._observer.worker_free()

    def worker_answered(self, worker: WorkerProcess, jobs: list[Job], samples: list[MetricValue]) -> None:
        self.note_room(worker)
        self._observer.batch_done(jobs, samples)
        if (self._recycle_after or self._recycle_above) and self._is_due(worker, worker.spec):
            self._replace_one()
        self._observer.worker_free()

    def worker_sampled(self, samples: list[MetricValue]) -> None:
        self._observer.sampled(samples)

    def worker_has_room(self, worker: WorkerProcess) -> None:
        self.note_room(worker)
        self._observer.worker_free()

    def worker_gone(self, worker: WorkerProcess, begun: list[Job], unbegun: list[Job], reason: str) -> None:
        if worker in self.workers:
            self.workers.remove(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        if worker is self._successor:
            self._successor = None
        if reason:
            self.failure = worker.failure
            self._observer.worker_lost()
            if not worker.loaded and self.wanted:
                self._start_failed(worker, reason)
        if unbegun:
            self._observer.batch_returned(unbegun)
        if begun:
            self._observer.batch_lost(begun, reason, blameless=worker.killed_from_outside, hung=worker.hung)
        self._settle()
        self._tell_change()

    def _start_failed(self, worker: WorkerProcess, reason: str) -> None:
        """Start again later, or at once after a kill from outside.

        A kill from outside says nothing about the model.
        """
        if worker.killed_from_outside and self._killed_starts < KILLED_STARTS:
            self._killed_starts += 1
            return
        self.failed_starts += 1
        self.refusal = reason[:MAX_REFUSAL]
        pause = BACKOFF_S[min(self.failed_starts, len(BACKOFF_S)) - 1]
        logger.warning("%s is started again in %g s", worker.description, pause)
        self._cancel_retry()
        self._retry = asyncio.get_running_loop().call_later(pause, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._settle()

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _tell_change(self) -> None:
        self._changed.set()
        self._observer.pool_changed()
