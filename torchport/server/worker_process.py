"""A worker seen from the front: its process, its end of the socket pair, what it works on.

    worker = WorkerProcess(spec, owner)
    worker.start()                       # owner.worker_ready(worker) follows, or worker_gone
    worker.work(jobs)                    # owner.worker_answered(...) follows, or worker_gone

A worker has at most one batch at a time. Everything here runs on the event loop of the front, but for
one thread per worker that waits for its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Protocol, cast

import msgspec
import psutil

from torchport.server.job import Job, Kind
from torchport.server.wire import (
    HEADER,
    MAX_FRAME,
    Answered,
    Infer,
    InferRow,
    Load,
    Loaded,
    LoadFailed,
    Partial,
    Predict,
    Row,
    Sample,
    decode_report,
    encode_frame,
)

logger = logging.getLogger(__name__)

OUTPUT_LINES = 60
"""How many of its last lines are kept of what a worker wrote, to explain its end."""

CUT_OFF_S = 1.0
"""How long a process may take to end after its end of the channel is closed."""


class State(Enum):
    STARTING = "STARTING"
    READY = "READY"
    BUSY = "BUSY"
    STOPPING = "STOPPING"
    GONE = "GONE"


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """How to start a worker. Times are in seconds.

    `environment` is added to the front's own, but for variables whose name matches `hidden`.
    """

    load: Load
    startup_timeout: float
    response_timeout: float
    environment: Mapping[str, str] = field(default_factory=dict)
    hidden: str = ""
    python: str = sys.executable


class Owner(Protocol):
    """Who is told of what a worker does."""

    def worker_ready(self, worker: WorkerProcess) -> None: ...

    def worker_answered(self, worker: WorkerProcess, jobs: list[Job], samples: list[Sample]) -> None: ...

    def worker_gone(self, worker: WorkerProcess, jobs: list[Job], reason: str) -> None: ...


class WorkerProcess(asyncio.Protocol):
    """One worker process."""

    _numbers = iter(range(9000, sys.maxsize))

    def __init__(self, spec: WorkerSpec, owner: Owner) -> None:
        self.spec, self.owner = spec, owner
        self.id = str(next(self._numbers))
        self.state = State.STARTING
        self.started_at = datetime.now(UTC)
        self.loaded = False
        """Whether it has loaded its model, whatever became of it then."""
        self.load_seconds = 0.0
        self.served = 0
        self.memory = 0
        self.signature: dict[str, object] = {}
        self.failure = ""
        """Why it could not load its model: the traceback."""
        self.hung = False
        self.killed_from_outside = False
        self._batch = 0
        self._jobs: list[Job] = []
        self._buffer = bytearray()
        self._output: deque[str] = deque(maxlen=OUTPUT_LINES)
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._killed_by_us = False
        self._said_why = ""
        self._exit_code: int | None = None
        self._is_cut_off = False

    # Starting and stopping.

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def resident_bytes(self) -> int:
        """Its resident memory now; 0 where it is gone."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss) if self.pid else 0
        except psutil.Error:
            return 0

    async def start(self) -> None:
        """Start the process and send it what to load. Call it on the event loop's own thread: on Linux
        a child dies with the thread that started it."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        environment = dict(os.environ)
        if self.spec.hidden:
            pattern = re.compile(self.spec.hidden)
            environment = {name: text for name, text in environment.items() if not pattern.fullmatch(name)}
        environment |= self.spec.environment
        with theirs:
            self._process = subprocess.Popen(
                [
                    self.spec.python,
                    *("-P", "-u", "-m", "torchport.server.worker"),
                    *(str(theirs.fileno()), str(lifeline)),
                ],
                env=environment,
                pass_fds=(theirs.fileno(), lifeline),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        os.close(lifeline)
        ours.setblocking(False)
        assert self._process.stdout is not None
        self._timer = loop.call_later(self.spec.startup_timeout, self._too_slow_to_start)
        threading.Thread(
            target=self._wait, args=(loop, self._process), name=f"worker-{self.id}", daemon=True
        ).start()
        await loop.connect_accepted_socket(lambda: self, ours)
        self._send(self.spec.load)

    def stop(self) -> None:
        """End it as soon as it has no batch: what it works on is finished first."""
        if self.state in (State.STARTING, State.READY):
            self._hang_up()
        elif self.state is State.BUSY:
            self.state = State.STOPPING

    def kill(self) -> None:
        """End it now, and its own children with it."""
        self._killed_by_us = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _hang_up(self) -> None:
        """Close this end: a worker that waits for an order ends then; the lifeline sees to any other."""
        self.state = State.STOPPING
        if self._transport is not None:
            self._transport.close()
        self._close_lifeline()

    def _close_lifeline(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    # Working.

    def work(self, jobs: list[Job]) -> None:
        """Send a batch of jobs of one kind."""
        self.state = State.BUSY
        self._jobs = jobs
        self._batch += 1
        now = time.monotonic()
        for job in jobs:
            job.started = now
        if jobs[0].kind is Kind.TENSORS:
            self._send(Infer(self._batch, [cast(InferRow, job.row) for job in jobs]))
        else:
            self._send(Predict(self._batch, [cast(Row, job.row) for job in jobs]))
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.spec.response_timeout, self._hangs)

    def _send(self, message: object) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_frame(message))

    def _too_slow_to_start(self) -> None:
        self._said_why = f"it did not load its model within {self.spec.startup_timeout:g} s"
        self.kill()

    def _hangs(self) -> None:
        self.hung = True
        self._said_why = f"no answer within {self.spec.response_timeout:g} s"
        self.kill()

    # What comes from the worker.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer)
            end = HEADER.size + length
            if length > MAX_FRAME:
                self._damaged(f"it announced {length} bytes")
                return
            if len(self._buffer) < end:
                return
            with memoryview(self._buffer) as view:
                try:
                    report = decode_report(view[HEADER.size : end])
                except msgspec.DecodeError as err:
                    report = err
            del self._buffer[:end]
            if isinstance(report, msgspec.DecodeError):
                self._damaged(str(report))
                return
            self._take(report)

    def _damaged(self, reason: str) -> None:
        self._said_why = f"it wrote what is no report ({reason})"
        self.kill()

    def _take(self, report: Loaded | LoadFailed | Partial | Answered) -> None:
        if isinstance(report, Answered):
            self._answered(report)
        elif isinstance(report, Partial):
            if report.batch == self._batch and report.row < len(self._jobs):
                self._jobs[report.row].stream(report.answer)
        elif isinstance(report, Loaded):
            self._cancel_timer()
            self.loaded = True
            self.load_seconds = (datetime.now(UTC) - self.started_at).total_seconds()
            self.signature = msgspec.json.decode(report.signature) if report.signature else {}
            logger.info("%s is ready, pid %d, %s", self.describes, self.pid, report.describes)
            if self.state is State.STARTING:
                self.state = State.READY
                self.owner.worker_ready(self)
        else:
            self.failure, self._said_why = report.traceback, report.reason

    def _answered(self, report: Answered) -> None:
        if report.batch != self._batch or len(report.answers) != len(self._jobs):
            self._damaged(f"answers to batch {report.batch}, not to {self._batch}")
            return
        self._cancel_timer()
        jobs, self._jobs = self._jobs, []
        self.served += len(jobs)
        self.memory = report.memory
        if self.state is State.STOPPING:
            self._hang_up()
        else:
            self.state = State.READY
        # The worker gets its next batch first: it computes while these answers are written.
        self.owner.worker_answered(self, jobs, report.samples)
        for job, answer in zip(jobs, report.answers, strict=True):
            job.finish(answer)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Its end.

    def _wait(self, loop: asyncio.AbstractEventLoop, process: subprocess.Popen[bytes]) -> None:
        """In a thread: pass on what it writes, until it ends."""
        assert process.stdout is not None
        reader = threading.Thread(target=self._read_output, args=(process.stdout,), daemon=True)
        reader.start()
        code = process.wait()
        # A child of its own may hold the pipe open: what is there is read, and no more is waited for.
        reader.join(timeout=0.5)
        with contextlib.suppress(RuntimeError):  # The loop is closed: the front is ending.
            loop.call_soon_threadsafe(self._ended, code)

    def _read_output(self, stream: object) -> None:
        for raw in stream:  # type: ignore[attr-defined]
            line = raw.decode("utf-8", "replace").rstrip()
            self._output.append(line)
            logger.info("[%s] %s", self.describes, line)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_cut_off = True
        if self._exit_code is not None:
            self._bury()
        elif self.state is not State.STOPPING:
            # As a rule it is ending by itself, and its exit code will say how. One that closed the channel
            # and lives on is of no use.
            asyncio.get_running_loop().call_later(CUT_OFF_S, self.kill)

    def _ended(self, code: int) -> None:
        """Its process has ended. What it wrote before that is read first: answers may be among it."""
        self._exit_code = code
        if self._is_cut_off:
            self._bury()
        else:
            # A child of its own may hold the channel open; then there is no end of it to wait for.
            asyncio.get_running_loop().call_later(0.2, self._bury)

    def _bury(self) -> None:
        if self.state is State.GONE:
            return
        self._cancel_timer()
        self._close_lifeline()
        if self._transport is not None:
            self._transport.close()
        wanted = self.state is State.STOPPING and not self._jobs
        self.state = State.GONE
        code = self._exit_code if self._exit_code is not None else 0
        self.killed_from_outside = code == -signal.SIGKILL and not self._killed_by_us
        reason = self._said_why or _end_of(code)
        if not self.failure and not wanted:
            self.failure = "\n".join([f"worker {self.pid}: {reason}", *self._output])
        jobs, self._jobs = self._jobs, []
        if not wanted:
            logger.warning("%s, pid %d, is gone: %s", self.describes, self.pid, reason)
        self.owner.worker_gone(self, jobs, "" if wanted else reason)

    @property
    def describes(self) -> str:
        return f"worker {self.id} of {self.spec.load.model} {self.spec.load.version}"


def _end_of(code: int) -> str:
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        return f"it was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"it was ended by signal {-code}"
