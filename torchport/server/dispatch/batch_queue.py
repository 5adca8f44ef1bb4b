"""A bounded FIFO queue for one model version. Requests of disconnected clients are dropped.

if not queue.is_full():
    queue.put(job)
queue.take(8)                        # up to 8 jobs that may share a batch
"""

from __future__ import annotations

import time
from collections import deque

from torchport.server.dispatch.job import Job

SEARCH_EVERY_S = 0.005
"""Minimum seconds between two searches of a full queue for requests of disconnected clients."""


class BatchQueue:
    """Requests in order of arrival; `limit` is the maximum number that wait."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._jobs: deque[Job] = deque()
        self._waiting = 0
        self._searched_at = 0.0

    def __len__(self) -> int:
        """Number of requests that wait for a worker."""
        return self._waiting

    def is_full(self) -> bool:
        """Whether `limit` requests wait, those of disconnected clients not counted."""
        if self._waiting < self.limit:
            return False
        now = time.monotonic()
        if now - self._searched_at > SEARCH_EVERY_S:
            self._searched_at = now
            self._forget_gone()
        return self._waiting >= self.limit

    def put(self, job: Job) -> None:
        """Add a job at the end."""
        self._jobs.append(job)
        self._count_in(job)

    def put_back(self, jobs: list[Job]) -> None:
        """Return jobs to the head, in order, because they have waited longest."""
        self._jobs.extendleft(reversed(jobs))
        for job in jobs:
            self._count_in(job)

    def settle(self, job: Job) -> bool:
        """Stop counting a job as waiting; return whether it was.

        `take` skips such a job.
        """
        waited, job.queued = job.queued, False
        self._waiting -= waited
        return waited

    def take(self, size: int) -> list[Job]:
        """Take the next batch: at most `size` jobs of one kind.

        A job with `alone` is a batch by itself.
        """
        batch: list[Job] = []
        while self._jobs and len(batch) < size:
            job = self._jobs[0]
            if job.queued and batch and (job.alone or job.kind is not batch[0].kind):
                break
            self._jobs.popleft()
            if not self.settle(job):
                continue
            if job.caller.is_gone:
                job.forget()
                continue
            batch.append(job)
            if job.alone:
                break
        return batch

    def take_older(self, latest: float) -> list[Job]:
        """Take out the waiting jobs that came at this time or before, by `time.monotonic`."""
        return [job for job in self._jobs if job.enqueued <= latest and self.settle(job)]

    def oldest(self) -> float:
        """When the first of the waiting jobs came; now if none waits."""
        return min((job.enqueued for job in self._jobs if job.queued), default=time.monotonic())

    def drain(self) -> list[Job]:
        """Take out all waiting jobs."""
        jobs = [job for job in self._jobs if self.settle(job)]
        self._jobs.clear()
        return jobs

    def _count_in(self, job: Job) -> None:
        job.queued = True
        self._waiting += 1

    def _forget_gone(self) -> None:
        for job in self._jobs:
            if job.queued and job.caller.is_gone:
                self.settle(job)
                job.forget()
        self._jobs = deque(job for job in self._jobs if job.queued)
