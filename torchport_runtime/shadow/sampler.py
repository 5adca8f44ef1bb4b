"""Picks the rows of live traffic that a shadow runs again.

sampler = Sampler(0.1)
sampler.take(32)                     # [4, 17, 26]: indices among the next 32 rows
"""

from __future__ import annotations

import random


class Sampler:
    """Picks one row, at random, of each 1/fraction rows.

    The choice is random, so that no rhythm of the traffic can hide from it.
    """

    def __init__(self, fraction: float) -> None:
        self._fraction = fraction
        self._seen = self._stretch = 0
        self._chance = random.Random()
        self._next = -1
        self._pick()

    def take(self, rows: int) -> list[int]:
        """Indices of the picked rows among the next `rows`."""
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
