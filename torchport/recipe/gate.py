"""Limits how much metrics may drop when arithmetic is made cheaper.

    gate = Gate.of(recipe.goals, parse_max_drop("0.5%"))
    gate.broken({"accuracy": 0.975}, {"accuracy": 0.961})
    # ['accuracy is 0.9610, 0.0140 worse than 0.9750 in float32: 0.0050 is allowed']

A drop is a difference of the metric itself, not a share of it: 0.5% is 0.005, half a point of an
accuracy. A metric on another scale, such as BLEU's 0 to 100, takes a plain number: 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchport.errors import RecipeError
from torchport.recipe.goals import missed_goals, parse_goal


def parse_max_drop(text: str) -> float:
    """Parse a maximum drop: `"0.5%"` and `"0.005"` are both `0.005`.

    Raises:
        RecipeError: it is no number, or negative.
    """
    given = text.strip()
    try:
        value = float(given.removesuffix("%")) / (100 if given.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise RecipeError(
            f"--max-drop {text!r}: how much worse a metric may be, such as 0.5% (0.005, half a point of an "
            "accuracy) or 0.005, is expected"
        )
    return value


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Maximum drop of the metrics that goals name.

    `goals` also say which way each metric gets better (`>=` or `<=`).

    Args:
        max_drop: maximum drop of each metric, in its own unit.
    """

    max_drop: float
    goals: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, goals: Mapping[str, str], max_drop: float) -> Gate:
        """Make the gate of a recipe's goals.

        Raises:
            RecipeError: no goals, so that it is unknown which way a metric gets better.
        """
        if not goals:
            raise RecipeError(
                "this recipe has no goals, so that nothing says which metric is to be kept: give it held-out "
                "examples, a score, and goals such as {'accuracy': '>= 0.97'}"
            )
        return cls(max_drop=max_drop, goals=dict(goals))

    def drop(self, metric: str, before: float, now: float) -> float:
        """How much a metric got worse; negative if it got better."""
        comparison, _ = parse_goal(metric, self.goals[metric])
        return before - now if comparison.startswith(">") else now - before

    def largest_drop(self, before: Mapping[str, float], now: Mapping[str, float]) -> float:
        """The largest drop of the metrics; infinite if one is missing."""
        known = [name for name in self.goals if name in before and name in now]
        lost = [self.drop(name, before[name], now[name]) for name in known]
        return max(lost) if len(known) == len(self.goals) else math.inf

    def worst(self, measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The worst value of each metric over several measurements.

        A metric that goals do not name has its first value.
        """
        first = dict(measured[0])
        for name in self.goals:
            found = [metrics[name] for metrics in measured if name in metrics]
            if name in first:
                first[name] = max(found, key=lambda now: self.drop(name, 0.0, now))
        return first

    def broken(self, before: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
        """Why metrics do not hold against those in float32; empty if they hold.

        A goal that float32 reaches must still be reached.
        """
        problems = []
        for name in self.goals:
            if name not in before or name not in now:
                problems.append(f"score() gives no {name!r}, which goals names")
                continue
            goal = {name: self.goals[name]}
            drop = self.drop(name, before[name], now[name])
            # A difference of two floats that are exactly a limit apart may exceed it by their rounding.
            allowed = self.max_drop + 1e-12 * max(1.0, abs(before[name]))
            if not drop <= allowed:
                problems.append(
                    f"{name} is {now[name]:.4f}, {drop:.4f} worse than {before[name]:.4f} in float32: "
                    f"{self.max_drop:.4f} is allowed"
                )
            elif not missed_goals(goal, before):
                problems += [f"{missed}, which float32 reaches" for missed in missed_goals(goal, now)]
        return problems

    def to_json(self) -> dict[str, Any]:
        return {"max_drop": self.max_drop, "goals": dict(self.goals)}
