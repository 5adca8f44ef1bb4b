"""Counters and histograms that every request updates; `/metrics` shows them."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence

from torchport.server.dispatch.job import Job

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Histogram:
    """Counts of values up to each bound, and the sum of all values."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus expects them."""
        found, seen = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            found.append((bound, float(seen)))
        return found


class RouteStatistics:
    """Requests to one model by the version that they name; "default" counts those that name none.

    All APIs count here. `answered_at` is the time of the last answer, by `time.monotonic`; `last_wait_s` is
    how long its request waited for a worker.
    """

    __slots__ = ("answered_at", "inference_us", "last_wait_s", "queue_us", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.inference_us = 0.0
        self.queue_us = 0.0
        self.answered_at = self.last_wait_s = 0.0

    def asked(self) -> None:
        """Count a request that a queue has taken."""
        self.requests += 1

    def answered(self, job: Job) -> None:
        """Add the times of a request that a worker has answered."""
        self.answered_at = time.monotonic()
        self.last_wait_s = job.started - job.enqueued
        self.inference_us += (self.answered_at - job.enqueued) * 1e6
        self.queue_us += self.last_wait_s * 1e6


class ModelStatistics:
    """Counters and histograms of one model version."""

    __slots__ = (
        "batch_rows",
        "completed",
        "expired",
        "failed",
        "inference_s",
        "queue_s",
        "rejected",
        "restarts",
        "retried",
    )

    def __init__(self) -> None:
        self.queue_s = Histogram(SECONDS)
        self.inference_s = Histogram(SECONDS)
        self.batch_rows = Histogram(ROWS)
        self.completed = 0
        self.failed = 0
        self.rejected = 0
        self.expired = 0
        self.retried = 0
        self.restarts = 0


class RequestCounts:
    """Answers by the class of their status, over all APIs."""

    __slots__ = ("client_errors", "ok", "server_errors")

    def __init__(self) -> None:
        self.ok = self.client_errors = self.server_errors = 0

    def add(self, status: int) -> None:
        if status < 400:
            self.ok += 1
        elif status < 500:
            self.client_errors += 1
        else:
            self.server_errors += 1
