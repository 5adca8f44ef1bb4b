"""The live rows of a worker whose model streams, as the front sees them.

    rows = LiveRows(limit)
    rows.add(number, job, held)          # it has been sent, or waits to be: `rows.begin(number, overdue)`
    rows.find(number)                    # its job, for a piece
    rows.take(number)                    # its job, for its end

A row must send a piece or end within `limit` seconds, again and again. One that does not makes `overdue` be
called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from torchport.server.dispatch.job import Job
from torchport.server.dispatch.placing import Held


@dataclass(slots=True)
class _Row:
    job: Job
    held: Held
    """What the process finds of the row in the arena."""
    heard: float | None = None
    """When the last piece came, by the event loop's clock; None before the row was sent."""


class LiveRows:
    """Jobs by the number of their row.

    `overdue` is kept only while rows are live: it refers to the worker, which must be free once it is gone.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._rows: dict[int, _Row] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_on_trial(self) -> bool:
        """Whether a row that cost a worker its life has sent no piece yet: nothing may join it."""
        return any(row.job.alone and not row.job.streams for row in self._rows.values())

    def add(self, number: int, job: Job, held: Held) -> None:
        self._rows[number] = _Row(job, held)

    def begin(self, number: int, overdue: Callable[[], None]) -> None:
        """Note that a row has been sent: its time counts."""
        if number in self._rows:
            self._rows[number].heard = asyncio.get_running_loop().time()
            self._watch(overdue)

    def find(self, number: int) -> Job | None:
        """The job of a row that has sent a piece; None if it is not live."""
        row = self._rows.get(number)
        if row is None:
            return None
        row.heard = asyncio.get_running_loop().time()
        return row.job

    def take(self, number: int) -> Job | None:
        """Take out a row that has ended; None if it is not live."""
        row = self._rows.pop(number, None)
        if row is None:
            return None
        row.job.leaving = None
        if not self._rows:
            self._stop_watching()
        return row.job

    def drain(self) -> tuple[list[Job], list[Job]]:
        """Take out all rows: those that were sent, and those that were not."""
        rows, self._rows = list(self._rows.values()), {}
        self._stop_watching()
        for row in rows:
            row.job.leaving = None
        begun = [row.job for row in rows if row.heard is not None]
        return begun, [row.job for row in rows if row.heard is None]

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self, overdue: Callable[[], None]) -> None:
        """Look again when the row that was heard of first may be overdue.

        One timer serves all rows: pieces are many, and each only notes its time.
        """
        if self._timer is None:
            heard = [row.heard for row in self._rows.values() if row.heard is not None]
            if heard:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_at(min(heard) + self._limit, self._look, overdue)

    def _look(self, overdue: Callable[[], None]) -> None:
        self._timer = None
        latest = asyncio.get_running_loop().time() - self._limit
        if any(row.heard is not None and row.heard <= latest for row in self._rows.values()):
            overdue()
        else:
            self._watch(overdue)
