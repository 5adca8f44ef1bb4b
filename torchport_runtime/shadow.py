"""Live traffic, looked at twice: a sampled fraction of what a model answers is run again on a second backend.

    shadow = Shadow(folder, signatures, options)           # options.shadow says which backend, and how much
    backend = shadow.beside("main", signature, backend)    # answers as before, and lets the shadow look
    shadow.report(context.metrics)

No caller waits for it. The second backend lives in a process of its own, which takes what time the processors
have left; rows are handed to it when their answer is on its way, and where it has enough to do they are
dropped and counted. Metrics, as of any handler: `ShadowRows`, `ShadowDisagreements`, `ShadowDrops` and
`ShadowMaxDifference`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from torchport_runtime.backends import Backend, Tensors
from torchport_runtime.errors import BackendError
from torchport_runtime.options import BackendOptions
from torchport_runtime.shadow_messages import Looked, Sample, Start
from torchport_runtime.signature import Signature

logger = logging.getLogger(__name__)

ANSWER_FIRST_S = 0.01
"""So long rows wait before they are handed over: their answer is written meanwhile."""
MOST_SAMPLES, MOST_BYTES = 16, 64 << 20
"""What may wait to be looked at; more is dropped."""
AT_ONCE_S = 0.05
"""Time that may be taken at once, where none was for a while."""
START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Dimension:
    """A metric's label, as TorchServe's metrics take it."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"


class Shadow:
    """The second backend of one worker.

    Raises:
        BackendError: it does not start: an artifact, a library or a device that is not to be had.
    """

    def __init__(self, folder: Path, signatures: Mapping[str, Signature], options: BackendOptions) -> None:
        shadowed = options.shadowed
        if options.shadow is None or shadowed is None:
            raise BackendError("no shadow is asked for in these options")
        self.fraction = options.shadow.fraction
        self._allowance = Allowance(options.shadow.share)
        self._waiting: deque[tuple[Sample, int, int]] = deque()
        """Each with its rows and its size in bytes."""
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._bytes = self._outstanding = 0
        self._rows = self._disagreements = self._drops = 0
        self._greatest = 0.0
        self._has_reported = self._has_warned = self._is_lost = self._is_closed = False
        exact = {options.precision, shadowed.precision} == {"float32"}
        examples = options.shadow.examples
        if examples and not Path(examples).is_dir():
            raise BackendError(f"shadow.examples {examples!r} is no folder: make it, or leave it out")
        start: Start = {
            "folder": str(folder),
            "options": shadowed.to_json(),
            "signatures": {name: signature.to_json() for name, signature in signatures.items()},
            "bounded_by": (options.backend, shadowed.backend) if exact else (),
            "examples": examples,
        }
        self._process, self._connection = _start(folder)
        try:
            self._connection.send(start)
            if not self._connection.poll(START_TIMEOUT_S):
                raise BackendError(f"the shadow backend did not load within {START_TIMEOUT_S:.0f} s")
            problem = self._connection.recv()
        except (EOFError, OSError) as err:
            code = self._process.wait()
            raise BackendError(f"the shadow backend's process ended with {code} as it loaded") from err
        except BackendError:
            self.close()
            raise
        if problem:
            self.close()
            raise BackendError(f"shadow: {problem}")
        threading.Thread(target=self._hand_over, name="shadow", daemon=True).start()

    def beside(self, graph: str, signature: Signature, backend: Backend) -> Backend:
        """The backend, whose answers the shadow gets to see."""
        return _Watched(self, graph, signature, backend)

    @property
    def pid(self) -> int:
        """Of the second backend's process."""
        return self._process.pid

    @property
    def has_news(self) -> bool:
        """Whether something is to be reported, or will be soon."""
        return bool(self._outstanding or self._rows or self._drops)

    def offer(self, sample: Sample, rows: int) -> None:
        """Take rows to be looked at later; drop them where too much waits."""
        size = sum(array.nbytes for arrays in sample[1:] for array in arrays.values())
        with self._lock:
            full = len(self._waiting) >= MOST_SAMPLES or self._bytes + size > MOST_BYTES
            if full or self._is_lost:
                self._drops += rows
                return
            self._waiting.append((sample, rows, size))
            self._bytes += size
            self._outstanding += rows
        self._work.set()

    def report(self, metrics: Any) -> None:
        """Tell what was found since the last report, by a handler's `context.metrics`."""
        with self._lock:
            rows, disagreements, drops = self._rows, self._disagreements, self._drops
            self._rows = self._disagreements = self._drops = 0
        if not rows and not drops:
            return
        if not self._has_reported:
            # A counter at 0 is there to be seen before it is needed.
            self._has_reported = True
            for name in ("ShadowRows", "ShadowDisagreements", "ShadowDrops"):
                metrics.add_counter(name, 0)
        for name, value in (
            ("ShadowRows", rows),
            ("ShadowDisagreements", disagreements),
            ("ShadowDrops", drops),
        ):
            if value:
                metrics.add_counter(name, value)
        if rows:
            worker = [Dimension("Worker", str(os.getpid()))]
            metrics.add_metric(
                "ShadowMaxDifference", self._greatest, "", dimensions=worker, metric_type=_gauge()
            )

    def close(self) -> None:
        """End the second backend's process; what is offered from then on is dropped."""
        with self._lock:
            self._is_lost = self._is_closed = True
            self._waiting.clear()
        # Not the connection, which the thread may be reading: it sees the end of the process.
        self._process.kill()
        self._process.wait()
        self._work.set()

    def _hand_over(self) -> None:
        """In a thread: one sample after another to the process, and what it finds back."""
        while True:
            self._work.wait()
            self._work.clear()
            if self._is_closed:
                self._connection.close()
                return
            time.sleep(ANSWER_FIRST_S)
            while self._waiting:
                time.sleep(self._allowance.wait_s())
                with self._lock:
                    if not self._waiting:
                        break
                    sample, _, size = self._waiting.popleft()
                    self._bytes -= size
                started = time.monotonic()
                try:
                    self._connection.send(sample)
                    looked = Looked(*self._connection.recv())
                except (EOFError, OSError) as err:
                    self._lose(err)
                    return
                self._allowance.spend(time.monotonic() - started)
                self._take(sample[0], looked)

    def _take(self, graph: str, looked: Looked) -> None:
        with self._lock:
            self._outstanding -= looked.rows
            self._rows += looked.rows
            self._disagreements += looked.disagreeing
            self._greatest = max(self._greatest, looked.greatest)
        if looked.disagreeing and not self._has_warned:
            self._has_warned = True
            why = looked.problem or f"they differ by up to {looked.greatest:.3g}"
            logger.warning("shadow: the backends disagree, first on graph %s: %s", graph, why)

    def _lose(self, err: BaseException) -> None:
        """Its process is gone: serving goes on, and what would have been looked at is counted as dropped."""
        if self._is_closed:
            self._connection.close()
            return
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(1.0)
        logger.error(
            "shadow: its process is gone (exit code %s, %r): off until this worker restarts", code, err
        )
        with self._lock:
            self._is_lost = True
            self._drops += self._outstanding
            self._outstanding, self._bytes = 0, 0
            self._waiting.clear()


class Allowance:
    """Time that may be taken: `share` of what passes. What takes long because others keep the processors is
    charged for all of that, and comes less often when they do."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._left, self._at = AT_ONCE_S, time.monotonic()

    def wait_s(self) -> float:
        """Seconds until more may be taken."""
        now = time.monotonic()
        self._left = min(AT_ONCE_S, self._left + (now - self._at) * self._share)
        self._at = now
        return max(0.0, -self._left / self._share)

    def spend(self, seconds: float) -> None:
        """Count what was taken; the next may have to wait for it."""
        self._left -= seconds


class Sampler:
    """Picks rows evenly: every stretch of 1/fraction of them has one, and which one is left to chance, so
    that no rhythm of the traffic can hide from it."""

    def __init__(self, fraction: float) -> None:
        self._fraction = fraction
        self._seen = self._stretch = 0
        self._chance = random.Random()
        self._next = -1
        self._pick()

    def take(self, rows: int) -> list[int]:
        """Which of the next `rows` are picked, counted from 0."""
        start, self._seen = self._seen, self._seen + rows
        picked: list[int] = []
        while self._next < self._seen:
            picked.append(self._next - start)
            self._pick()
        return picked

    def _pick(self) -> None:
        place = (self._stretch + self._chance.random()) / self._fraction
        self._stretch += 1
        self._next = max(int(place), self._next + 1)


class _Watched:
    """A backend that answers, and offers some of its rows to the shadow."""

    def __init__(self, shadow: Shadow, graph: str, signature: Signature, backend: Backend) -> None:
        self._shadow, self._graph, self.unwatched = shadow, graph, backend
        self._has_rows = signature.batch_dim is not None
        self._sampler = Sampler(shadow.fraction)
        self.device, self.provider = backend.device, backend.provider

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        outputs = self.unwatched.run(inputs)
        picked = self._sampler.take(len(next(iter(outputs.values()))) if self._has_rows else 1)
        if picked:
            # Copies: what is here now belongs to the caller.
            at: Any = picked if self._has_rows else ...
            copies = [{name: np.array(a[at]) for name, a in arrays.items()} for arrays in (inputs, outputs)]
            self._shadow.offer((self._graph, copies[0], copies[1]), len(picked))
        return outputs


def _start(folder: Path) -> tuple[subprocess.Popen[bytes], Connection]:
    """The process, which imports this copy of the runtime, and a connection to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "torchport_runtime.shadow_process", str(theirs.fileno())],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    return process, Connection(ours.detach())


def _gauge() -> Any:
    """TorchServe's own word for a gauge, where its metrics are loaded."""
    types = sys.modules.get("ts.metrics.metric_type_enum")
    return "gauge" if types is None else types.MetricTypes.GAUGE
