"""Watches how late the event loop runs what is due, for the metrics.

    watchdog = LoopLag()
    watchdog.start()                     # on a running event loop
    registry.register(watchdog)

Every request of the front passes through one thread. Whatever holds it up delays all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from torchport.server.models.statistics import Histogram

INTERVAL_S = 0.01
"""Seconds between two looks. A delay can be longer by as much than what is measured."""

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class LoopLag(Collector):
    """The histograms `torchport_loop_lag_seconds` and `torchport_loop_own_lag_seconds`.

    The second counts no more of a delay than the CPU time that the process used during it. What other
    processes on a busy machine take is in the first only.
    """

    def __init__(self) -> None:
        self._lag, self._own = Histogram(BOUNDS_S), Histogram(BOUNDS_S)
        self._due = self._cpu = 0.0

    def start(self) -> None:
        """Begin to watch the running event loop."""
        self._look_later(asyncio.get_running_loop())

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due, self._cpu = time.perf_counter() + INTERVAL_S, time.process_time()
        loop.call_later(INTERVAL_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        lag = max(0.0, time.perf_counter() - self._due)
        self._lag.add(lag)
        self._own.add(min(lag, time.process_time() - self._cpu))
        self._look_later(loop)

    def collect(self) -> Iterator[Any]:
        for name, text, kept in (
            ("torchport_loop_lag_seconds", "How late the event loop runs what is due", self._lag),
            ("torchport_loop_own_lag_seconds", "As much of it as the server's own CPU time", self._own),
        ):
            family = HistogramMetricFamily(name, text)
            family.add_metric((), kept.buckets(), kept.total)
            yield family
