"""Measurements that are fair to each other: everybody in every round, the order rotated.

measured = interleave({"a": measure_a, "b": measure_b}, Effort(seconds=4, rounds=5))
Spread.of(m.per_second for m in measured["a"])
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from bench.load import Measured

Measure = Callable[[int], Measured]
"""Puts a load on something for so many seconds."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long everything is measured: seconds a run, rounds of runs, seconds of warming up before.

    The warming up is long for the sake of TorchServe: Java compiles what it runs often, for a while.
    """

    seconds: int = 4
    rounds: int = 5
    warm_up: int = 10


@dataclass(frozen=True)
class Spread:
    """The median of several runs, and the least and the greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        listed = list(values)
        return cls(statistics.median(listed), min(listed), max(listed))


def interleave(measures: Mapping[str, Measure], effort: Effort) -> dict[str, list[Measured]]:
    """One run of each in every round, after a run of each that does not count."""
    for measure in measures.values():
        measure(effort.warm_up)
    names, found = list(measures), dict[str, list[Measured]]((name, []) for name in measures)
    for number in range(effort.rounds):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            found[name].append(measures[name](effort.seconds))
    return found


def per_second(runs: list[Measured]) -> Spread:
    return Spread.of(run.per_second for run in runs)


def median_ms(runs: list[Measured]) -> Spread:
    return Spread.of(run.median_ms for run in runs)
