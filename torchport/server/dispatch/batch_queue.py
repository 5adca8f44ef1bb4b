"""The requests that wait for one model version: bounded, in order, and forgetting those that nobody
waits for any more.

    if not queue.is_full():
        queue.put(job)
    queue.take(8)                        # up to 8 jobs that may share a batch
"""

from __future__ import annotations

import time
from collections import deque

from torchport.server.dispatch.job import Job

SEARCH_EVERY_S = 0.005
"""A full queue is searched for those whose clients have hung up, but not for every request that comes."""


class BatchQueue:
    """First come, first served. `limit` says when it is full."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._jobs: deque[Job] = deque()
        self._waiting = 0
        self._searched_at = 0.0

    def __len__(self) -> int:
        """How many wait for an answer."""
        return self._waiting

    def is_full(self) -> bool:
        """Whether as many wait as may. Those that have hung up are forgotten first."""
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
        """Return jobs to the head, in their order: they have waited longest."""
        self._jobs.extendleft(reversed(jobs))
        for job in jobs:
            self._count_in(job)

    def settle(self, job: Job) -> bool:
        """Tell that a job was answered otherwise; whether it waited here. `take` passes over it."""
        waited, job.queued = job.queued, False
        self._waiting -= waited
        return waited

    def take(self, size: int) -> list[Job]:
        """The next batch: jobs of one kind, at most `size`; one that must go alone goes alone."""
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

    def drain(self) -> list[Job]:
        """Take everything out."""
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
