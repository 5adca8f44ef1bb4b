"""A worker: one model version in a process, and its batch.

    worker = WorkerProcess(spec, owner, hosts)
    await worker.start()                 # owner.worker_ready(worker) follows, or worker_gone
    worker.work(jobs)                    # owner.worker_answered(...) follows, or worker_gone

A worker has at most one batch at a time. One whose model streams has live rows as well, which join and end
one by one.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from itertools import count
from typing import Any, Protocol, cast

import msgspec

from torchport.server.dispatch.arena import Arena
from torchport.server.dispatch.host import End, SharedHosts, WorkerHost
from torchport.server.dispatch.job import Job, Kind
from torchport.server.dispatch.live_rows import LiveRows
from torchport.server.dispatch.own_thread import in_own_thread
from torchport.server.dispatch.placing import Held, placed
from torchport.server.wire import (
    Answered,
    Infer,
    InferRow,
    Join,
    Leave,
    Left,
    Load,
    Loaded,
    LoadFailed,
    MetricValue,
    Partial,
    Predict,
    Report,
    Row,
    Sampled,
)

logger = logging.getLogger(__name__)


class State(Enum):
    STARTING = "STARTING"
    READY = "READY"
    BUSY = "BUSY"
    STOPPING = "STOPPING"
    GONE = "GONE"


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """How to start a worker. Times are in seconds.

    `environment` is added to the front's own, from which variables whose names match `hidden` are removed.
    Workers with the same `share` live in one process; with "" a worker has its own. `prepare` is called in a
    thread of its own before the process starts; if it raises, the start has failed. Large data of requests
    are in `arena`; a process that models share does not get it.
    """

    load: Load
    startup_timeout: float
    response_timeout: float
    environment: Mapping[str, str] = field(default_factory=dict)
    hidden: str = ""
    python: str = sys.executable
    share: str = ""
    prepare: Callable[[], None] = lambda: None
    arena: Arena | None = None


class Owner(Protocol):
    """Receives the events of a worker."""

    def worker_ready(self, worker: WorkerProcess) -> None: ...

    def worker_answered(self, worker: WorkerProcess, jobs: list[Job], samples: list[MetricValue]) -> None: ...
    def worker_sampled(self, samples: list[MetricValue]) -> None: ...
    def worker_has_room(self, worker: WorkerProcess) -> None: ...

    def worker_gone(
        self, worker: WorkerProcess, begun: list[Job], unbegun: list[Job], reason: str
    ) -> None: ...


class WorkerProcess:
    """One worker, as the front sees it."""

    _numbers = count(9000)

    def __init__(self, spec: WorkerSpec, owner: Owner, hosts: SharedHosts) -> None:
        self.spec, self.owner, self._hosts = spec, owner, hosts
        self.slot = next(self._numbers)
        self.state = State.STARTING
        self.started_at = datetime.now(UTC)
        self.loaded = False
        """Whether the worker has loaded its model, even if it has ended since."""
        self.load_seconds = 0.0
        self.served = 0
        self.memory = 0
        self.signature: dict[str, Any] = {}
        self.failure = ""
        """Why the worker could not load its model, or ended: a traceback, or its last output."""
        self.hung = False
        self.killed_from_outside = False
        self._had_begun = False
        """Whether the current batch has been sent; in a shared process it may still be queued."""
        self._batches = count(1)
        self._batch = 0
        self._jobs: list[Job] = []
        self._streams = False
        """Whether requests join the model one by one."""
        self._live = LiveRows(spec.response_timeout)
        self._held: Held = {}
        """What the process finds in the arena: its batch, and what its handler has kept of earlier ones."""
        self._timer: asyncio.TimerHandle | None = None
        self._host: WorkerHost | None = None

    @property
    def id(self) -> str:
        return str(self.slot)

    @property
    def pid(self) -> int:
        return self._host.pid if self._host else 0

    @property
    def description(self) -> str:
        return f"worker {self.slot} of {self.spec.load.model} {self.spec.load.version}"

    @property
    def room(self) -> int:
        """Number of rows that it can be given now."""
        size = self.spec.load.batch_size
        if self.state is State.READY:
            return size
        joins = self.state is State.BUSY and self._streams and not self._jobs
        return size - len(self._live) if joins and not self._live.is_on_trial else 0

    def resident_bytes(self) -> int:
        """Current resident memory of the process in bytes; 0 if ended."""
        return self._host.resident_bytes() if self._host else 0

    # Starting and stopping.

    async def start(self) -> None:
        """Start the process, or find the shared one, and load the model.

        Does nothing if the worker was stopped before.
        """
        await in_own_thread(self.spec.prepare)
        if self.state is not State.STARTING:
            self._gone("")
            return
        share = self.spec.share
        host = self._hosts.find(share) if share else None
        is_new = host is None
        if host is None:
            host = WorkerHost(
                environment=self.spec.environment,
                hidden=self.spec.hidden,
                python=self.spec.python,
                name=f"shared worker {share}" if share else self.description,
                arena=None if share else self.spec.arena,
            )
            if share:
                self._hosts.keep(share, host)
        self._host = host
        host.add(self)
        host.send(self, msgspec.structs.replace(self.spec.load, slot=self.slot, shared=bool(share)))
        self._set_timer(
            self.spec.startup_timeout, f"it did not load its model within {self.spec.startup_timeout:g} s"
        )
        if is_new:
            await host.start()

    def stop(self) -> None:
        """End the worker once its current batch and its live rows are finished."""
        if self.state is State.BUSY:
            self.state = State.STOPPING
        elif self.state in (State.STARTING, State.READY):
            self._leave()

    def kill(self, reason: str = "it was to end") -> None:
        """Kill the worker's process, with all models in it."""
        if self._host is not None:
            self._host.kill(reason)
        else:
            self.state = State.STOPPING

    def _leave(self) -> None:
        """Leave the process, which ends with its last worker."""
        self.state = State.STOPPING
        self._cancel_timer()
        if self._host is None:
            # `start`, which is still to come, finds the state and starts nothing.
            return
        if len(self._host.members) <= 1:
            # Its end is told by `host_gone`, when it has really come.
            self._host.disconnect()
            return
        self._host.remove(self)
        asyncio.get_running_loop().call_soon(self._gone, "")

    # Working.

    def work(self, jobs: list[Job]) -> None:
        """Send a batch of jobs of one kind, `room` of them at most."""
        assert self._host is not None
        self.state = State.BUSY
        now = time.monotonic()
        for job in jobs:
            job.started = now
        if self._streams and jobs[0].kind is Kind.PREDICT:
            for job in jobs:
                self._join(job)
            return
        self._jobs, self._had_begun = jobs, False
        self._batch = next(self._batches)
        rows, held = placed([job.row for job in jobs], self._host.arena)
        self._held.update(held)
        if jobs[0].kind is Kind.TENSORS:
            order: Any = Infer(self.slot, self._batch, cast(list[InferRow], rows))
        else:
            order = Predict(self.slot, self._batch, cast(list[Row], rows))
        self._host.send(self, order)

    def _join(self, job: Job) -> None:
        """Send a row, which is live until `Left` comes."""
        assert self._host is not None
        number, host = next(self._batches), self._host
        (row,), held = placed([job.row], host.arena)
        self._live.add(number, job, held)
        job.was_live, job.leaving = True, lambda: host.send(self, Leave(self.slot, number))
        host.send(self, Join(self.slot, number, cast(Row, row)))

    def order_sent(self, order: Any) -> None:
        if isinstance(order, Join):
            limit = self.spec.response_timeout
            self._live.begin(order.batch, partial(self._too_slow, f"no piece within {limit:g} s"))
        elif not isinstance(order, Load | Leave):
            self._had_begun = True
            self._await_answer()

    def _await_answer(self) -> None:
        limit = self.spec.response_timeout
        self._set_timer(limit, f"no answer within {limit:g} s")

    def _set_timer(self, seconds: float, reason: str) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._too_slow, reason)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self, reason: str) -> None:
        self.hung = True
        self.kill(reason)

    # What comes from its process.

    def take(self, report: Report) -> None:
        if isinstance(report, Answered):
            self._answered(report)
        elif isinstance(report, Partial):
            self._streamed(report)
        elif isinstance(report, Left):
            self._left(report)
        elif isinstance(report, Sampled):
            self.owner.worker_sampled(report.samples)
        elif isinstance(report, Loaded):
            self._cancel_timer()
            self.loaded = True
            self.load_seconds = (datetime.now(UTC) - self.started_at).total_seconds()
            self._streams = report.streams
            self.signature = msgspec.json.decode(report.signature) if report.signature else {}
            logger.info("%s is ready, pid %d, %s", self.description, self.pid, report.description)
            if self.state is State.STARTING:
                self.state = State.READY
                self.owner.worker_ready(self)
        elif isinstance(report, LoadFailed):
            self.failure = report.traceback
            logger.error(
                "%s could not load its model: %s",
                self.description,
                report.reason,
                extra={
                    "model": f"{self.spec.load.model} {self.spec.load.version}",
                    "worker": self.slot,
                    "pid": self.pid,
                    "traceback": report.traceback,
                },
            )
            if self._host is not None:
                self._host.remove(self)
            self._gone(report.reason)

    def _streamed(self, report: Partial) -> None:
        """Deliver a piece, of the batch or of a live row."""
        if report.batch == self._batch and report.row < len(self._jobs):
            self._await_answer()
            self._jobs[report.row].stream(report.answer)
            return
        job = self._live.find(report.batch)
        if job is not None:
            was_on_trial = job.alone and not job.streams
            job.stream(report.answer)
            if was_on_trial:
                self.owner.worker_has_room(self)

    def _left(self, report: Left) -> None:
        """Deliver the last piece of a live row."""
        job = self._live.take(report.batch)
        if job is None:
            self.kill(f"it ended row {report.batch}, which it does not have")
            return
        self.served += 1
        self.memory = report.memory
        self._rest()
        self.owner.worker_answered(self, [job], report.samples)
        job.finish(report.answer)

    def _rest(self) -> None:
        """Be ready, or leave, if nothing is left to be answered."""
        if self._jobs or len(self._live):
            return
        if self.state is State.STOPPING:
            self._leave()
        else:
            self.state = State.READY

    def _answered(self, report: Answered) -> None:
        if report.batch != self._batch or len(report.answers) != len(self._jobs):
            self.kill(f"it answered batch {report.batch}, not {self._batch}")
            return
        self._cancel_timer()
        jobs, self._jobs = self._jobs, []
        self._held = {start: self._held[start] for start in report.kept if start in self._held}
        self.served += len(jobs)
        self.memory = report.memory
        self._rest()
        # The worker gets its next batch first: it computes while these answers are written.
        self.owner.worker_answered(self, jobs, report.samples)
        for job, answer in zip(jobs, report.answers, strict=True):
            job.finish(answer)

    def host_gone(self, end: End) -> None:
        """Note the end of the worker's process, and tell the owner."""
        wanted = self.state is State.STOPPING and not (self._jobs or len(self._live))
        self.killed_from_outside = end.from_outside
        if not wanted and not self.failure:
            self.failure = f"worker {self.pid}: {end.reason}\n{end.output}".strip()
        self._gone("" if wanted else end.reason)

    def _gone(self, reason: str) -> None:
        if self.state is State.GONE:
            return
        self._cancel_timer()
        self.state = State.GONE
        begun, unbegun = self._live.drain()
        jobs, self._jobs = self._jobs, []
        (begun if self._had_begun else unbegun).extend(jobs)
        self._held.clear()
        if reason:
            logger.warning("%s, pid %d, is gone: %s", self.description, self.pid, reason)
        self.owner.worker_gone(self, begun, unbegun, reason)
