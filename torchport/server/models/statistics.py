"""Counts and distributions, cheap enough to be kept for every request; `metrics` shows them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Histogram:
    """Numbers of values up to each bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus has them."""
        found, seen = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            found.append((bound, float(seen)))
        return found


class RouteStatistics:
    """Of the requests to one model under one version's name: "default" where none was named."""

    __slots__ = ("inference_us", "queue_us", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.inference_us = 0.0
        self.queue_us = 0.0


class ModelStatistics:
    """Of one model version."""

    __slots__ = (
        "batch_rows",
        "completed",
        "expired",
        "failed",
        "gone",
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
        self.gone = 0
        self.retried = 0
        self.restarts = 0


class RequestCounts:
    """Answers by the class of their status, over all APIs; and how long the last prediction waited."""

    __slots__ = ("client_errors", "ok", "queue_ms", "server_errors")

    def __init__(self) -> None:
        self.ok = self.client_errors = self.server_errors = 0
        self.queue_ms = 0.0

    def add(self, status: int) -> None:
        if status < 400:
            self.ok += 1
        elif status < 500:
            self.client_errors += 1
        else:
            self.server_errors += 1
