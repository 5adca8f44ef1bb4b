"""One version of a model: its queue, its workers, and the retries when one of them dies.

    version.submit(Kind.PREDICT, row, caller)          # caller.answered(...) or caller.failed(...) follows

A free worker takes what waits, up to the batch size, at once. One that streams takes rows while others are
live. The rows of a batch that cost a worker
its life are tried again one by one; a row that does it again is answered with an error.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from torchport.server.dispatch.arena import Arena
from torchport.server.dispatch.batch_queue import BatchQueue
from torchport.server.dispatch.host import SharedHosts
from torchport.server.dispatch.job import Caller, Job, Kind
from torchport.server.dispatch.pool import WorkerPool
from torchport.server.dispatch.worker import State, WorkerSpec
from torchport.server.errors import DeadlineExceeded, InternalError, ModelRefused, ServiceUnavailable
from torchport.server.models.life import Life, life_of
from torchport.server.models.settings import ModelSettings
from torchport.server.models.statistics import ModelStatistics, RouteStatistics
from torchport.server.models.unpacked import UnpackedModel
from torchport.server.models.worker_count import worker_bytes
from torchport.server.models.worker_spec import WorkerDefaults, next_gpu, worker_spec
from torchport.server.wire import InferRow, MetricValue, Row

logger = logging.getLogger(__name__)

LOSSES = 2
LOSSES_FROM_OUTSIDE = 3
"""Number of workers that may die with a row; then it is answered with an error.

A SIGKILL from outside may be an operator's, or the kernel's because memory ran out: it allows one more try.
"""


class ModelVersion:
    """A registered version.

    `samples_taken` gets the values of the handler's own metrics; `taken_gpus` gives the devices of all
    workers of the server, one entry for each worker. `workers_chosen` is whether the number of workers is the
    server's own choice.
    """

    def __init__(
        self,
        model: UnpackedModel,
        settings: ModelSettings,
        statistics: ModelStatistics,
        hosts: SharedHosts,
        defaults: WorkerDefaults,
        *,
        taken_gpus: Callable[[], list[int]] = list,
        samples_taken: Callable[[ModelVersion, list[MetricValue]], None] = lambda version, samples: None,
        loaded_at_startup: bool = False,
        workers_chosen: bool = False,
    ) -> None:
        self.model, self.settings = model, settings
        self.statistics = statistics
        self.queue = BatchQueue(settings.job_queue_size)
        self.loaded_at_startup = loaded_at_startup
        self._workers_chosen = workers_chosen
        self.in_flight = 0
        self._closing = False
        self._unready: asyncio.TimerHandle | None = None
        self.arena = None if settings.shared_worker else Arena.create()
        """Where the workers find large data of requests; None: in their messages."""
        self._defaults, self._taken_gpus, self._samples_taken = defaults, taken_gpus, samples_taken
        self._dispatching = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._loop = asyncio.get_running_loop()
        self.pool = WorkerPool(
            self._worker_spec,
            self,
            hosts=hosts,
            recycle_after=settings.recycle_after_requests,
            recycle_above=settings.recycle_above_mb << 20,
            first_alone=workers_chosen,
        )

    # Asking.

    def submit(
        self,
        kind: Kind,
        row: Row | InferRow,
        caller: Caller,
        timeout: float | None = None,
        *,
        route: RouteStatistics | None = None,
    ) -> Job:
        """Put a request into the queue; `caller` gets the answer or an error.

        Args:
            timeout: seconds after which the client no longer wants an answer.
            route: counts the request and its answer; None for one that is no prediction.

        Raises:
            ServiceUnavailable: the queue is full, or there are no workers and none will start.
            ModelRefused: no worker can load the model.
        """
        self.require_room()
        job = Job(kind, row, caller, route=route)
        self.queue.put(job)
        if route is not None:
            route.asked()
        limit = self.settings.client_timeout_ms / 1000
        if timeout is not None or limit:
            limit = min(timeout or limit, limit or timeout or 0.0)
            job.timer = self._loop.call_later(limit, self._expire, job)
        self._dispatch_soon()
        if not self.pool.has_been_ready:
            self._bound_wait(self.settings.response_timeout)
        return job

    def require_room(self) -> None:
        """Refuse a request that the queue cannot take now, before its body is read.

        Raises:
            ServiceUnavailable: the queue is full, or there are no workers and none will start.
            ModelRefused: no worker can load the model.
        """
        if self.pool.cannot_load:
            raise self._refusal()
        if self._closing or not (self.pool.wanted or self.pool.workers):
            raise ServiceUnavailable(
                f'Model "{self.model.name}" Version {self.model.version} has no worker to serve inference '
                "request. Please use scale workers API to add workers."
            )
        if self.queue.is_full():
            self.statistics.rejected += 1
            raise ServiceUnavailable(
                f'Model "{self.model.name}" Version {self.model.version}: {self.queue.limit} requests wait '
                "already, which is as many as may (job_queue_size): try again later"
            )

    def require_workers(self) -> None:
        """Refuse where workers are wanted, and none is ready.

        Raises:
            ServiceUnavailable: they are starting.
            ModelRefused: they cannot load the model.
        """
        if self.pool.cannot_load:
            raise self._refusal()
        if self.pool.wanted and not self.pool.ready:
            raise ServiceUnavailable(
                f'Model "{self.model.name}" has no worker that is ready: try again later'
            )

    def _refusal(self) -> ModelRefused:
        name, number = self.model.name, self.model.version
        return ModelRefused(f'Model "{name}" Version {number} cannot be loaded: {self.pool.refusal}')

    def _bound_wait(self, seconds: float) -> None:
        """Refuse, after this time, what has waited too long for a first worker."""
        if self._unready is None:
            self._unready = self._loop.call_later(seconds, self._refuse_overdue)

    def _refuse_overdue(self) -> None:
        self._unready = None
        if self.pool.has_been_ready:
            return
        limit = self.settings.response_timeout
        for job in self.queue.take_older(time.monotonic() - limit):
            self.statistics.expired += 1
            job.fail(ServiceUnavailable(f"no worker was ready within {limit} s: try again later"))
        if len(self.queue):
            self._bound_wait(max(0.1, self.queue.oldest() + limit - time.monotonic()))

    def _expire(self, job: Job) -> None:
        if job.is_done:
            return
        self.queue.settle(job)
        self.statistics.expired += 1
        job.fail(DeadlineExceeded("no answer within the request's own time limit"))

    # Dispatching.

    def _dispatch_soon(self) -> None:
        """Dispatch after this turn of the event loop: requests that arrive together share a batch."""
        if not self._dispatching:
            self._dispatching = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatching = False
        while len(self.queue):
            worker = self.pool.idle_worker()
            if worker is None:
                return
            batch = self._take_batch(worker.room)
            if not batch:
                self.pool.put_back(worker)
                return
            if batch[0].alone and worker.state is not State.READY:
                # It may cost the worker its life: live rows must not be there.
                self.queue.put_back(batch)
                self.pool.put_back(worker)
                worker = self.pool.idle_worker(alone=True)
                if worker is None:
                    return
                batch = self._take_batch(1)
                if not batch:
                    self.pool.put_back(worker)
                    return
            now = time.monotonic()
            for job in batch:
                self.statistics.queue_s.add(now - job.enqueued)
            self.statistics.batch_rows.add(len(batch))
            self.in_flight += len(batch)
            self._empty.clear()
            worker.work(batch)
            self.pool.note_room(worker)

    def _take_batch(self, size: int) -> list[Job]:
        while True:
            batch = self.queue.take(size)
            limit = self.settings.queue_timeout_ms / 1000
            if not batch or not limit:
                return batch
            latest = time.monotonic() - limit
            fresh = [job for job in batch if job.enqueued >= latest]
            for job in batch:
                if job.enqueued < latest:
                    self.statistics.expired += 1
                    job.fail(
                        ServiceUnavailable(f"waited longer than {limit:g} s (queue_timeout_ms): try later")
                    )
            if fresh:
                return fresh

    # What the pool tells.

    def worker_free(self) -> None:
        if len(self.queue):
            self._dispatch()
        elif not self.in_flight:
            self._empty.set()

    def worker_lost(self) -> None:
        self.statistics.restarts += 1

    def batch_done(self, jobs: list[Job], samples: list[MetricValue]) -> None:
        self.in_flight -= len(jobs)
        now = time.monotonic()
        statistics = self.statistics
        for job in jobs:
            statistics.inference_s.add(now - job.started)
        statistics.completed += len(jobs)
        self.sampled(samples)

    def sampled(self, samples: list[MetricValue]) -> None:
        if samples:
            self._samples_taken(self, samples)

    def batch_returned(self, jobs: list[Job]) -> None:
        """Queue again the jobs that no worker had begun."""
        self.in_flight -= len(jobs)
        self.queue.put_back([job for job in jobs if not job.is_done])
        self._dispatch_soon()

    def batch_lost(self, jobs: list[Job], reason: str, *, blameless: bool, hung: bool) -> None:
        """Try again the jobs of a dead worker, one by one; fail those that are to blame."""
        self.in_flight -= len(jobs)
        again = []
        for job in jobs:
            job.losses += 1
            blamed = job.losses >= (LOSSES_FROM_OUTSIDE if blameless else LOSSES)
            blamed = blamed or (hung and len(jobs) == 1) or job.streams
            if blamed:
                self._blame(job, reason)
            else:
                job.alone = True
                again.append(job)
        again = [job for job in again if not job.is_done]
        self.statistics.retried += len(again)
        self.queue.put_back(again)
        self._dispatch_soon()

    def _blame(self, job: Job, reason: str) -> None:
        number = uuid.uuid4()
        self.statistics.failed += 1
        name = f"{self.model.name} {self.model.version}"
        logger.error(
            "request %s to %s, incident %s: worker died: %s",
            job.row.id,
            name,
            number,
            reason,
            extra={"request_ids": [job.row.id], "model": name},
        )
        job.fail(InternalError(f"Worker died. Incident {number}"))

    def pool_changed(self) -> None:
        if self._closing or not (self.pool.wanted or self.pool.workers):
            self._refuse_waiting()
        elif self.pool.cannot_load:
            for job in self.queue.drain():
                job.fail(self._refusal())
        if not self.in_flight and not len(self.queue):
            self._empty.set()

    def _refuse_waiting(self) -> None:
        if self.pool.workers:
            return
        for job in self.queue.drain():
            job.fail(ServiceUnavailable(f'Model "{self.model.name}" has no worker left'))

    # Managing.

    def scale(self, least: int, most: int) -> None:
        """Change the number of workers; nothing changes once the version leaves."""
        if self._closing:
            return
        self._workers_chosen = False
        self.settings = self.settings.with_workers(least, most)
        self.pool.scale(least)

    async def close(self, grace: float) -> None:
        """Answer the waiting requests, refuse new ones, stop the workers."""
        self._closing = True
        deadline = time.monotonic() + grace
        try:
            async with asyncio.timeout(grace):
                while (len(self.queue) or self.in_flight) and self.pool.workers:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            pass
        await self.pool.close(max(0.0, deadline - time.monotonic()))
        self._refuse_waiting()
        if self._unready is not None:
            self._unready.cancel()
        if self.arena is not None:
            self.arena.close()
            self.arena = None  # The version and its pool refer to each other: memory must not wait for both.

    def _worker_spec(self, workers: int) -> WorkerSpec:
        gpu = next_gpu(self.settings, self._defaults, self._taken_gpus)
        spec = worker_spec(self.model, self.settings, self._defaults, workers=workers, gpu=gpu)
        return replace(spec, arena=self.arena)

    @property
    def gpus(self) -> list[int]:
        """The devices of the version's workers, one entry for each worker."""
        alive = [w for w in self.pool.workers if w.state not in (State.STOPPING, State.GONE)]
        return [w.spec.load.gpu for w in alive if w.spec.load.gpu is not None]

    @property
    def life(self) -> Life:
        """How far the version has come."""
        return life_of(self.pool, is_leaving=self._closing)

    @property
    def least_workers(self) -> int:
        """Number of ready workers with which the version is healthy.

        It is the minimum that the archive or the operator asks for, and one of those that the server chose.
        """
        least = self.settings.min_workers
        return min(least, 1) if self._workers_chosen else least

    @property
    def planned_bytes(self) -> int:
        """Estimated memory of the workers that are wanted and not ready."""
        return worker_bytes(self.model) * max(0, self.settings.min_workers - len(self.pool.ready))

    @property
    def is_ready(self) -> bool:
        """Whether a worker is ready, or none is wanted."""
        return bool(self.pool.ready) or self.settings.min_workers == 0
