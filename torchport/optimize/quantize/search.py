"""Searches the fastest INT8 version of a model that passes its gate.

    outcome = search(workbench)
    outcome.best                         # the chosen Candidate; None if nothing passes
    outcome.tried                        # everything that was measured, in order

Every method is tried. If the gate fails, nodes are excluded (left in float32), worst first, until it
holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torchport.errors import QuantizationError
from torchport.optimize.quantize.candidates import Candidate, Layer, Workbench
from torchport.optimize.quantize.graphs import METHODS

FASTER = 1.05
"""Minimum speed-up over float32. A smaller one may be noise of measuring, and is not chosen."""

HOPEFUL = 0.85
"""Minimum share of `FASTER` in a quick measurement. A slower candidate is not measured again."""

AS_FAST = 0.9
"""Minimum share of the fastest candidate's speed for being as fast. Among these, the one that loses the
least is chosen: static methods differ in numbers only, and measurements of one graph differ by several
per cent."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """Result of the search.

    `impossible` says by method why it could not be tried at all.
    """

    best: Candidate | None
    tried: list[Candidate]
    impossible: dict[str, str]

    @property
    def why_none(self) -> str:
        """Why the model stays in float32, if nothing was chosen."""
        passing = [c for c in self.tried if not c.problems]
        if passing:
            fastest = max(passing, key=lambda c: c.speed)
            return (
                f"of what passes, nothing is faster than float32 on this machine: {fastest.method} has "
                f"{fastest.speed:.3f} times its throughput, at least {FASTER} is asked for"
            )
        if not self.tried:
            return "; ".join(self.impossible.values())
        nearest = min(self.tried, key=lambda c: (len(c.problems), c.drop))
        return f"nothing passes the gate; {nearest.method}: {'; '.join(nearest.problems)}"


def search(bench: Workbench, tell: Tell = lambda message: None) -> Outcome:
    """Try every method, exclude nodes in those that fail, and choose.

    Raises:
        QuantizationError: nothing in the model can be quantised.
        RecipeError: the recipe's code fails.
    """
    if not bench.layers:
        raise QuantizationError(
            "the model has no layer that ONNX Runtime can run in INT8: it stays in float32"
        )
    tried: list[Candidate] = []
    impossible: dict[str, str] = {}
    for method in METHODS:
        tell(f"{method}: calibrating, quantising, measuring")
        try:
            tried.append(bench.candidate(method))
        except QuantizationError as err:
            impossible[method] = str(err)
    for whole in [c for c in tried if _worth_mending(c, tried)]:
        tell(f"{whole.method}: which layers it hurts")
        ranked = bench.layers_by_error(whole.method)
        tried += _with_excluded_nodes(bench, whole.method, ranked, tell)
    tell("timing what passes")
    tried = _timed(bench, tried)
    return Outcome(_chosen(tried), tried, impossible)


def _worth_mending(candidate: Candidate, tried: Sequence[Candidate]) -> bool:
    """Whether excluding nodes could make a candidate the chosen one.

    It could not if the candidate is slow with all layers in INT8. Nor if another static method passes
    with all of them: its ranges are other numbers in the same graph, which runs as fast.
    """
    if not candidate.problems or candidate.speed < FASTER * HOPEFUL:
        return False
    static = [c for c in tried if c.method != "dynamic"]
    return candidate.method == "dynamic" or all(c.problems for c in static)


def _with_excluded_nodes(bench: Workbench, method: str, ranked: list[Layer], tell: Tell) -> list[Candidate]:
    """Candidates with the worst nodes excluded, twice as many each time.

    Once the gate holds, the minimum number with which it holds is found by halving.
    """

    def measure(count: int) -> Candidate:
        tell(f"{method}: the {count} worst of {len(ranked)} layers in float32")
        return bench.candidate(method, ranked[:count])

    found: list[Candidate] = []
    fails, count = 0, 1
    while count < len(ranked):
        found.append(measure(count))
        if not found[-1].problems:
            break
        if found[-1].speed < FASTER * HOPEFUL:
            return found  # More of them in float32 will not be faster.
        fails, count = count, 2 * count
    else:
        return found
    holds = count
    while holds - fails > 1:
        middle = (fails + holds) // 2
        found.append(measure(middle))
        fails, holds = (middle, holds) if found[-1].problems else (fails, middle)
    return found


def _timed(bench: Workbench, tried: list[Candidate]) -> list[Candidate]:
    """The same candidates; those that pass and are not slow have thorough timings."""
    hopeful = [i for i, c in enumerate(tried) if not c.problems and c.speed >= FASTER * HOPEFUL]
    if not hopeful:
        return tried
    speeds = dict(zip(hopeful, bench.speeds([tried[index] for index in hopeful]), strict=True))
    return [replace(c, speed=speeds[i], quick=False) if i in speeds else c for i, c in enumerate(tried)]


def _chosen(tried: Sequence[Candidate]) -> Candidate | None:
    passing = [c for c in tried if not c.problems and not c.quick and c.speed >= FASTER]
    if not passing:
        return None
    fastest = max(c.speed for c in passing)

    return min(
        (c for c in passing if c.speed >= AS_FAST * fastest),
        key=lambda c: (c.drop, -(c.agreement.share or 0.0), len(c.excluded)),
    )
