"""What a benchmark says: figures, each with what it is held against and what it is to reach.

Figure(part="A", what="64 connections", unit="1/s", measured=ours, against=theirs,
       rival="TorchServe", target=Target("at least", 5.0))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.load import Measured
from bench.rounds import Spread


@dataclass(frozen=True)
class Target:
    """A bound of the ratio to the rival, or of the measured value where there is no rival."""

    relation: Literal["at least", "at most", "more than", "under"]
    bound: float

    def holds(self, value: float) -> bool:
        return {
            "at least": value >= self.bound,
            "at most": value <= self.bound,
            "more than": value > self.bound,
            "under": value < self.bound,
        }[self.relation]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table. Without a target it is there to be read, and cannot fail."""

    part: str
    what: str
    unit: str
    measured: Spread
    rival: str = ""
    against: Spread | None = None
    target: Target | None = None
    failed: int = 0
    """Requests that failed in its runs: with one of them the figure is no measurement."""

    @property
    def ratio(self) -> float | None:
        """Of the medians; None without a rival, or where that gave no answer."""
        if self.against is None or not self.against.median:
            return None
        return self.measured.median / self.against.median

    @property
    def holds(self) -> bool:
        if self.failed:
            return False
        value = self.measured.median if self.ratio is None else self.ratio
        return self.target is None or self.target.holds(value)


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A picture of one quantity; with `line`, of how it changes along the bars' names."""

    title: str
    unit: str
    bars: Mapping[str, Spread]
    line: bool = False


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one part of the benchmark found. `runs` are all the runs by name, `settings` what was chosen."""

    letter: str
    title: str
    figures: Sequence[Figure]
    charts: Sequence[Bars]
    runs: Mapping[str, Sequence[Measured]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
