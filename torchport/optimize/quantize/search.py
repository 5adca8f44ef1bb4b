"""The fastest INT8 version of a model that passes its gate: every method is tried; where the gate fails,
layers are left in float32, worst first, until it holds.

    outcome = search(workbench)
    outcome.best                         # the chosen Candidate; None where nothing passes
    outcome.tried                        # everything that was measured, in its order
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torchport.errors import QuantizationError
from torchport.optimize.quantize.candidates import Candidate, Layer, Workbench
from torchport.optimize.quantize.graphs import METHODS

FASTER = 1.05
"""A multiple of float32's throughput that is more than the noise of measuring."""

HOPEFUL = 0.85
"""Of that, after a quick measurement: what is slower is not measured again."""

AS_FAST = 0.9
"""Of the fastest: among these the one that loses the least is chosen. Static methods differ in numbers only,
and measurements of one and the same graph lie several per cent apart."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """`impossible` says why a method could not be tried at all, by its name."""

    best: Candidate | None
    tried: list[Candidate]
    impossible: dict[str, str]

    @property
    def why_none(self) -> str:
        """What keeps the model in float32, where nothing was chosen."""
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
    """Try every method, mend those that fail, and choose.

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
        tried += _left_in_float32(bench, whole.method, ranked, tell)
    tell("timing what passes")
    tried = _timed(bench, tried)
    return Outcome(_chosen(tried), tried, impossible)


def _worth_mending(candidate: Candidate, tried: Sequence[Candidate]) -> bool:
    """Whether leaving layers in float32 could end in what is chosen.

    Not where it is slow with all of them in INT8; nor where another static method passes with all of
    them: their ranges are other numbers in the same graph, which runs as fast.
    """
    if not candidate.problems or candidate.speed < FASTER * HOPEFUL:
        return False
    static = [c for c in tried if c.method != "dynamic"]
    return candidate.method == "dynamic" or all(c.problems for c in static)


def _left_in_float32(bench: Workbench, method: str, ranked: list[Layer], tell: Tell) -> list[Candidate]:
    """Candidates with ever more of the worst layers in float32, twice as many each time; and once the gate
    holds, the fewest with which it does, found by halving.
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
    """The same, what passes and is not slow timed thoroughly."""
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
        key=lambda c: (c.drop, -(c.agreement.share or 0.0), len(c.left)),
    )
