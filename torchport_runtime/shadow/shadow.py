"""Shadow testing: a fraction of live traffic runs again on a second backend.

    shadow = Shadow(folder, signatures, options)           # options.shadow says which backend, and how much
    backend = shadow.wrap("main", signature, backend)      # answers as before; the shadow samples its rows
    shadow.report(context.metrics)

No caller waits for it. The second backend has its own process, which uses idle processor time only. Rows
are handed to it when their answer is on its way. If too many wait, rows are dropped and counted. The
results are handler metrics: `ShadowRows`, `ShadowDisagreements`, `ShadowDrops` and `ShadowMaxDifference`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from torchport_runtime.backends.backend import Backend, Tensors
from torchport_runtime.errors import BackendError
from torchport_runtime.options import BackendOptions
from torchport_runtime.shadow.allowance import CpuBudget
from torchport_runtime.shadow.link import COMPARE_LIMIT_S, ComparisonTimeout, ShadowLink
from torchport_runtime.shadow.messages import SampledRows, ShadowResult, Start
from torchport_runtime.shadow.metrics import add_counts, add_difference
from torchport_runtime.shadow.sampler import Sampler
from torchport_runtime.signature import Signature

logger = logging.getLogger(__name__)

ANSWER_FIRST_S = 0.01
"""Seconds that rows wait before they are handed over. Their answer is written meanwhile."""
MAX_SAMPLES, MAX_BYTES = 16, 64 << 20
"""Maximum number, and maximum bytes, of samples that wait for comparison; more are dropped."""
START_TIMEOUT_S = 120.0
COMPARE_PROCESSOR_S = 30.0
"""Maximum processor seconds of one comparison, per thread. More is taken for an endless computation."""
LONG_WAIT_S = 600.0
"""Maximum seconds that rows wait for the CPU budget. Otherwise they are dropped: there will be other rows
by then."""
RESTART_AFTER_S = 60.0
"""Minimum seconds before a process that had to be ended is started again."""


class Shadow:
    """The second backend of one worker.

    Raises:
        BackendError: the backend does not start: an artifact, a library or a device is missing.
    """

    def __init__(self, folder: Path, signatures: Mapping[str, Signature], options: BackendOptions) -> None:
        shadowed = options.shadowed
        if options.shadow is None or shadowed is None:
            raise BackendError("no shadow is asked for in these options")
        self.fraction = options.shadow.fraction
        self._folder = folder
        self._cpu_budget = CpuBudget(options.shadow.share)
        self._waiting: deque[tuple[SampledRows, int, int]] = deque()
        """Waiting samples, each with its number of rows and its size in bytes."""
        self._lock = threading.Lock()
        self._work, self._closed = threading.Event(), threading.Event()
        self._bytes = self._outstanding = 0
        self._rows = self._disagreements = self._drops = 0
        self._greatest = 0.0
        self._has_reported = self._has_warned = self._takes_none = False
        self._link: ShadowLink | None = None
        exact = {options.precision, shadowed.precision} == {"float32"}
        examples = options.shadow.examples
        if examples and not Path(examples).is_dir():
            raise BackendError(f"shadow.examples {examples!r} is no folder: make it, or leave it out")
        self._start: Start = {
            "folder": str(folder),
            "options": shadowed.to_json(),
            "signatures": {name: signature.to_json() for name, signature in signatures.items()},
            "bounded_by": (options.backend, shadowed.backend) if exact else (),
            "examples": examples,
            "processor_s": COMPARE_PROCESSOR_S * shadowed.thread_count,
            "callers_wait": False,
        }
        started: Future[None] = Future()
        # The process ends with this thread, which lives as long as the shadow; who calls may be any thread.
        threading.Thread(target=self._live, args=(started,), name="shadow", daemon=True).start()
        try:
            started.result()
        except BaseException:
            self.close()
            raise

    def wrap(self, graph: str, signature: Signature, backend: Backend) -> Backend:
        """Wrap a backend, so that the shadow samples its rows."""
        return _Watched(self, graph, signature, backend)

    @property
    def pid(self) -> int:
        """Id of the second backend's process; 0 without one."""
        link = self._link
        return link.pid if link is not None else 0

    @property
    def has_news(self) -> bool:
        """Whether there are metrics to report, now or soon.

        Servers read this property by its name, in archives of every age.
        """
        return bool(self._outstanding or self._rows or self._drops or not self._has_reported)

    def enqueue(self, sample: SampledRows, rows: int) -> None:
        """Queue rows for comparison; drop them if too many wait."""
        size = sum(array.nbytes for arrays in sample[1:] for array in arrays.values())
        with self._lock:
            full = len(self._waiting) >= MAX_SAMPLES or self._bytes + size > MAX_BYTES
            if full or self._takes_none:
                self._drops += rows
                return
            self._waiting.append((sample, rows, size))
            self._bytes += size
            self._outstanding += rows
        self._work.set()

    def report(self, metrics: Any) -> None:
        """Report the results since the last call, by a handler's `context.metrics`."""
        with self._lock:
            rows, disagreements, drops = self._rows, self._disagreements, self._drops
            self._rows = self._disagreements = self._drops = 0
        is_first, self._has_reported = not self._has_reported, True
        add_counts(
            metrics,
            {"ShadowRows": rows, "ShadowDisagreements": disagreements, "ShadowDrops": drops},
            is_first=is_first,
        )
        if rows:
            add_difference(metrics, self._greatest)

    def close(self) -> None:
        """End the second backend's process; rows that come later are dropped."""
        self._closed.set()
        self._drop_outstanding()
        with self._lock:
            # No more than that, for whoever calls has others to serve: the thread sees to the rest.
            if self._link is not None:
                self._link.kill()
        self._work.set()

    # In the thread of the process.

    def _live(self, started: Future[None]) -> None:
        try:
            try:
                self._open(START_TIMEOUT_S)
            except Exception as err:  # Raised where the shadow is made, whatever it is.
                started.set_exception(err)
                return
            started.set_result(None)
            self._hand_over()
        except Exception as err:  # Nobody else would see it, and its rows would never be counted.
            self._lose(err)
        finally:
            self._end_process()

    def _open(self, limit_s: float) -> ShadowLink:
        """Start the process."""
        link = ShadowLink(self._folder)
        with self._lock:
            self._link = link
            if self._closed.is_set():
                link.kill()
        link.load(self._start, limit_s)
        return link

    def _end_process(self) -> None:
        with self._lock:
            link, self._link = self._link, None
        if link is not None:
            link.close()

    def _hand_over(self) -> None:
        """Hand samples to the process, one after another, and take its results."""
        while not self._closed.is_set():
            self._work.wait()
            self._work.clear()
            self._closed.wait(ANSWER_FIRST_S)
            while self._waiting and not self._closed.is_set():
                with self._lock:
                    if not self._waiting:
                        break
                    sample, rows, size = self._waiting.popleft()
                    self._bytes -= size
                self._compare(sample, rows)

    def _compare(self, sample: SampledRows, rows: int) -> None:
        """Let the process compare rows, then wait until the budget allows more."""
        began = time.monotonic()
        problem: ComparisonTimeout | None = None
        try:
            link = self._link or self._open_again()
            result = link.compare(sample)
        except ComparisonTimeout as err:
            problem = err
            self._end_process()
        else:
            self._take(sample[0], rows, result)
        self._cpu_budget.spend(time.monotonic() - began)
        wait = self._cpu_budget.wait_s()
        if problem is not None:
            wait = max(wait, RESTART_AFTER_S)
            logger.error(
                "shadow: %d rows of graph %s: %s: its process was ended, and is started again for what "
                "comes in %.0f s, when its share has paid for this",
                *(rows, sample[0], problem, wait),
            )
        self._rest(wait, drops=problem is not None or wait > LONG_WAIT_S)

    def _open_again(self) -> ShadowLink:
        """Start the process again, with idle time only while requests are served."""
        self._start = {**self._start, "callers_wait": True}
        return self._open(COMPARE_LIMIT_S)

    def _rest(self, seconds: float, *, drops: bool) -> None:
        """Compare nothing for `seconds`; with `drops`, drop the rows that come."""
        if drops:
            self._drop_outstanding()
        until = time.monotonic() + seconds
        # In steps: it may be longer than what a system takes for one wait.
        while (left := until - time.monotonic()) > 0 and not self._closed.wait(min(left, LONG_WAIT_S)):
            pass
        with self._lock:
            self._takes_none = self._closed.is_set()

    def _take(self, graph: str, rows: int, result: ShadowResult) -> None:
        with self._lock:
            if self._closed.is_set():
                return  # They count as dropped by now.
            self._outstanding -= rows
            self._rows += rows
            self._disagreements += result.disagreeing
            self._greatest = max(self._greatest, result.greatest)
        if result.disagreeing and not self._has_warned:
            self._has_warned = True
            why = result.problem or f"they differ by up to {result.greatest:.3g}"
            logger.warning("shadow: the backends disagree, first on graph %s: %s", graph, why)

    def _lose(self, err: Exception) -> None:
        """Turn the shadow off after an error; serving goes on.

        Its rows count as dropped.
        """
        if self._closed.is_set():
            return
        surprise = not isinstance(err, BackendError)
        reason = f"{type(err).__name__}: {err}" if surprise else str(err)
        logger.error("shadow: %s: off until this worker restarts", reason, exc_info=surprise)
        self._drop_outstanding()

    def _drop_outstanding(self) -> None:
        """Count waiting rows, and those in comparison, as dropped; take no more."""
        with self._lock:
            self._takes_none = True
            self._drops += self._outstanding
            self._outstanding = self._bytes = 0
            self._waiting.clear()


class _Watched:
    """A backend that also queues some of its rows for the shadow."""

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
            self._shadow.enqueue((self._graph, copies[0], copies[1]), len(picked))
        return outputs
