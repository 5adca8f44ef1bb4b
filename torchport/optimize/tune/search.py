"""Searches the configuration that serves best within a service-level objective.

    outcome = search(space, slo, bench.serve, deadline=time.monotonic() + 300)
    outcome.chosen                       # the default, if nothing is better by more than noise
    outcome.front()                      # points that no other exceeds in both throughput and latency

The search has short runs of many configurations. First come all shapes (threads and workers) at the
default's batch size, then the other batch sizes of the best shapes. The finals have longer runs of the
best, in turns with the default. In each round every configuration is started anew, one after another,
so that other work on the machine affects all alike. Figures are medians over the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import median

from torchport.errors import ServerError
from torchport.optimize.tune.candidates import Space
from torchport.optimize.tune.load import CONNECTIONS, Ask, Measured
from torchport.optimize.tune.slo import PERCENTILES, Slo
from torchport.package.configuration import Configuration

GROWS = 1.05
"""Minimum growth of the throughput when the connections are doubled. With less, the server counts as full."""

BETTER = 1.02
"""Minimum speed-up over the default (median of the rounds). Below it, or if slower in any round, the
default is kept."""

MIN_ROUNDS = 2
"""Minimum rounds of the finals, even after the deadline: one alone would not tell what is noise."""

Serve = Callable[[Configuration], AbstractContextManager[Ask]]
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Durations of runs in seconds, and their numbers.

    Args:
        quick_s, final_s: seconds of a run in the search, and of one in the finals.
        rounds: number of rounds in the finals.
        finalists: maximum number of finalists next to the default.
        shapes: number of the best shapes for which other batch sizes are tried.
        search_share: maximum share of the time for the search.
        ladder: numbers of connections to try, in this order.
    """

    quick_s: float = 0.5
    final_s: float = 1.5
    rounds: int = 3
    finalists: int = 4
    shapes: int = 3
    search_share: float = 0.55
    ladder: Sequence[int] = CONNECTIONS


EFFORT = Effort()


@dataclass(frozen=True, kw_only=True)
class Point:
    """A configuration under a load.

    `rounds` are the finals' runs; empty if it was only in the search.
    """

    configuration: Configuration
    connections: int
    measured: Measured
    rounds: tuple[Measured, ...] = ()


@dataclass
class Outcome:
    """Result of the search.

    `speed` is the chosen one's worth as a multiple of the default's; 0 if the default is not within the
    SLO. `why` says why it was chosen. `failed` are configurations that could not be measured, `skipped`
    those without time.
    """

    space: Space
    slo: Slo
    points: list[Point] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[Configuration] = field(default_factory=list)
    chosen: Configuration | None = None
    speed: float = 1.0
    why: str = ""

    def of(self, configuration: Configuration) -> list[Point]:
        return [p for p in self.points if p.configuration == configuration]

    def best_of(self, configuration: Configuration) -> Point | None:
        """The configuration's best point within the SLO; None if none is."""
        met = [p for p in self.of(configuration) if self.slo.met(p.measured)]
        return max(met, key=lambda p: self.slo.worth(p.measured), default=None)

    def nearest_of(self, configuration: Configuration) -> Point | None:
        """The configuration's best point, or the nearest to the SLO."""
        points = self.of(configuration)
        best = self.best_of(configuration)
        return best or min(points, key=lambda p: self.slo.miss(p.measured), default=None)

    def order(self, configuration: Configuration) -> tuple[float, float]:
        """Sort key that puts the best first.

        Those within the SLO come by their worth, then those that miss it by how far they do.
        """
        point = self.nearest_of(configuration)
        if point is None:
            return float("inf"), 0.0
        return max(1.0, self.slo.miss(point.measured)), -self.slo.worth(point.measured)

    def measured(self) -> list[Configuration]:
        return list(dict.fromkeys(p.configuration for p in self.points))

    def front(self) -> list[Point]:
        """Points that no other exceeds in throughput at a lower p99.

        They are of configurations that may be chosen, lowest p99 first. A point at the same p99 counts
        too.
        """
        kinds = self.space.choosable
        sound = [p for p in self.points if p.configuration.kind in kinds and not p.measured.errors]
        sound.sort(key=lambda p: (p.measured.latency_ms["p99"], -p.measured.per_second))
        front: list[Point] = []
        for point in sound:
            if not front or point.measured.per_second > front[-1].measured.per_second:
                front.append(point)
        return front


def search(
    space: Space,
    slo: Slo,
    serve: Serve,
    *,
    deadline: float,
    effort: Effort = EFFORT,
    clock: Callable[[], float] = time.monotonic,
    tell: Tell = lambda message: None,
) -> Outcome:
    """Measure configurations, and choose the best within the SLO.

    The default is chosen if nothing is better. Nothing is chosen if nothing is within the SLO. A run
    that has begun at `deadline` (of `clock`) is finished. The finals always take place: `MIN_ROUNDS`,
    with the default and at least one other.

    Raises:
        ServerError: the default configuration cannot be served.
    """
    outcome = Outcome(space, slo)
    costs: list[float] = []  # What each took beside the runs: starting, warming up, stopping.
    begun = clock()
    search_ends = begun + effort.search_share * (deadline - begun)

    def climb(configuration: Configuration) -> None:
        tell(f"{configuration} ({len(outcome.measured()) + 1} measured)")
        started = clock()
        with serve(configuration) as ask:
            climbed = list(_climbed(configuration, ask, slo, effort))
        outcome.points += climbed
        costs.append(clock() - started - len(climbed) * effort.quick_s)

    def try_all(configurations: Sequence[Configuration]) -> None:
        for configuration in configurations:
            if clock() >= search_ends:
                outcome.skipped.append(configuration)
                continue
            try:
                climb(configuration)
            except ServerError as err:
                outcome.failed[str(configuration)] = str(err)

    climb(space.default)
    try_all(space.shapes)
    ranked = sorted((c for c in outcome.measured() if c.kind in space.choosable), key=outcome.order)
    try_all([c for shape in ranked[: effort.shapes] for c in space.with_batches(shape)])
    entries = _entries(outcome, effort)
    final_cost = median(costs) + 3 * effort.final_s
    while len(entries) > 2 and clock() + MIN_ROUNDS * final_cost * len(entries) > deadline:
        # Of the last two, it is the one that keeps the model's precision that stays.
        entries.pop(1 if len(entries) == 3 and _gives_up_precision(entries[1], space) else -1)
    _finals(outcome, entries, serve, effort, lambda: clock() >= deadline, tell)
    _choose(outcome)
    return outcome


def _climbed(configuration: Configuration, ask: Ask, slo: Slo, effort: Effort) -> Iterator[Point]:
    """Add connections until the latency or the throughput has reached its limit.

    The latency's is twice that of the SLO. The throughput's is where it stops growing.
    """
    full, most = 0, 0.0
    for connections in effort.ladder:
        measured = ask(connections, effort.quick_s)
        yield Point(configuration=configuration, connections=connections, measured=measured)
        full = 0 if measured.per_second > GROWS * most else full + 1
        most = max(most, measured.per_second)
        beyond = any(measured.latency_ms[name] > 2 * limit for name, limit in slo.latency_ms.items())
        if measured.errors or beyond or full == 2:
            return


def _entries(outcome: Outcome, effort: Effort) -> list[Configuration]:
    """Finalists: the default, the best that may be chosen, and one only shown.

    The best of those that are only shown takes part for comparison. If the leader uses a lower
    precision, the best full-precision configuration joins the finals, to measure the gain.
    """
    space = outcome.space
    ranked = sorted((c for c in outcome.measured() if c != space.default), key=outcome.order)
    choosable = [c for c in ranked if c.kind in space.choosable]
    shown = [c for c in ranked if c.kind not in space.choosable]
    if choosable and _gives_up_precision(choosable[0], space):
        exact = next((c for c in choosable if not _gives_up_precision(c, space)), None)
        if exact is not None:
            choosable.remove(exact)
            choosable.insert(1, exact)
    return [space.default, *choosable[: effort.finalists], *shown[:1]]


def _gives_up_precision(configuration: Configuration, space: Space) -> bool:
    return configuration.precision not in ("float32", space.default.precision)


def _finals(
    outcome: Outcome,
    entries: Sequence[Configuration],
    serve: Serve,
    effort: Effort,
    late: Callable[[], bool],
    tell: Tell,
) -> None:
    """Measure the finalists again, in rounds; the medians replace their points."""
    loads = {c: _around(outcome, c, effort.ladder) for c in entries}
    runs: dict[Configuration, list[dict[int, Measured]]] = {c: [] for c in entries}
    for number in range(effort.rounds):
        # Turned round every time: what heats up or slows down meets nobody in the same place.
        for configuration in entries if number % 2 == 0 else reversed(entries):
            enough = all(len(found) >= MIN_ROUNDS for found in runs.values())
            if configuration not in runs or (enough and late()):
                continue
            tell(f"round {number + 1} of {effort.rounds}: {configuration}")
            try:
                with serve(configuration) as ask:
                    runs[configuration].append({n: ask(n, effort.final_s) for n in loads[configuration]})
            except ServerError as err:
                if configuration == outcome.space.default:
                    raise
                outcome.failed[str(configuration)] = str(err)
                outcome.points = [p for p in outcome.points if p.configuration != configuration]
                del runs[configuration]
    rounds = min(len(found) for found in runs.values())
    for configuration, found in runs.items():
        outcome.points = [p for p in outcome.points if p.configuration != configuration] + [
            _median_point(configuration, n, [run[n] for run in found[:rounds]]) for n in loads[configuration]
        ]


def _around(outcome: Outcome, configuration: Configuration, ladder: Sequence[int]) -> list[int]:
    """The load that is worth most, and its two neighbours.

    One short run may be off by as much.
    """
    point = outcome.nearest_of(configuration)
    at = ladder.index(point.connections) if point else 0
    return list(ladder[max(0, at - 1) : at + 2])


def _median_point(configuration: Configuration, connections: int, runs: Sequence[Measured]) -> Point:
    middle = Measured(
        per_second=median(run.per_second for run in runs),
        latency_ms={name: median(run.latency_ms[name] for run in runs) for name in PERCENTILES},
        answers=sum(run.answers for run in runs),
        errors=sum(run.errors for run in runs),
        reason=next((run.reason for run in runs if run.reason), ""),
    )
    return Point(configuration=configuration, connections=connections, measured=middle, rounds=tuple(runs))


def _choose(outcome: Outcome) -> None:
    """Choose the best finalist that is surely better than the default.

    Otherwise the default is chosen, if it is within the SLO.
    """
    space, slo = outcome.space, outcome.slo
    finalists = dict.fromkeys(p.configuration for p in outcome.points if p.rounds)
    eligible = [c for c in finalists if c.kind in space.choosable and outcome.best_of(c)]
    ranked = [c for c in sorted(eligible, key=outcome.order) if c != space.default]
    default = outcome.best_of(space.default)
    if default is None:
        if ranked:
            outcome.chosen, outcome.speed = ranked[0], 0.0
            outcome.why = "it is the best within what is asked for, which the default does not give"
        return
    outcome.chosen, outcome.why = space.default, "nothing else that may be chosen is within what is asked for"
    what = "latency" if slo.is_about_latency else "throughput"
    for configuration in ranked:
        best = outcome.best_of(configuration) or default
        both = zip(best.rounds, default.rounds, strict=True)
        ratios = [slo.worth(mine) / slo.worth(its) for mine, its in both]
        if median(ratios) >= BETTER and min(ratios) >= 1:
            outcome.chosen, outcome.speed = configuration, median(ratios)
            outcome.why = (
                f"its {what} is {outcome.speed:.2f} times as good as the default's, in the same rounds"
            )
            return
        if configuration == ranked[0]:
            rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            outcome.why = f"{configuration} is {rounds} times as good by round, which may be noise"
