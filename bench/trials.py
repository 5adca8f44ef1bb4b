"""The best configuration of a contender: each is started alone, and measured once under each load.

tried = try_each({"batch 1": start_one, "batch 8": start_eight}, {"many": ask_much}, Effort())
best(tried, "many", lambda measured: measured.per_second)        # "batch 8"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bench.contenders import Server, Start
from bench.load import Measured
from bench.rounds import Effort

MeasureServer = Callable[[Server, int], Measured]
"""Puts a load on a server for so many seconds."""

Tried = dict[str, dict[str, Measured]]
"""By configuration, then by load."""


def try_each(starts: Mapping[str, Start], loads: Mapping[str, MeasureServer], effort: Effort) -> Tried:
    """One run of each load on each configuration, warmed up, with no other server beside it."""
    found: Tried = {}
    for name, start in starts.items():
        with start() as server:
            found[name] = {}
            for said, measure in loads.items():
                measure(server, effort.warm_up)
                found[name][said] = measure(server, effort.seconds)
    return found


def best(tried: Tried, load: str, worth: Callable[[Measured], float]) -> str:
    """The name of the configuration that was worth most under a load."""
    return max(tried, key=lambda name: worth(tried[name][load]))
