"""Goals of held-out metrics: `{"accuracy": ">= 0.97", "mse_to_pca": "< 1"}`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping

from torchport.errors import RecipeError

_COMPARISONS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
_GOAL = re.compile(r"(>=|<=|>|<)\s*(\S+)\Z")


def parse_goal(name: str, goal: object) -> tuple[str, float]:
    """Parse a goal: `">= 0.97"` is `(">=", 0.97)`.

    Raises:
        RecipeError: it is not a comparison and a number.
    """
    match = _GOAL.match(goal.strip()) if isinstance(goal, str) else None
    try:
        limit = float(match[2]) if match else math.nan
    except ValueError:
        limit = math.nan
    if match is None or not math.isfinite(limit):
        raise RecipeError(f"goals[{name!r}] = {goal!r}: such as '>= 0.97' is expected")
    return match[1], limit


def missed_goals(goals: Mapping[str, str], metrics: Mapping[str, float]) -> list[str]:
    """Each goal that `metrics` does not reach, with the metric's value.

    A goal without its metric is missed.
    """
    missed = []
    for name, goal in goals.items():
        comparison, limit = parse_goal(name, goal)
        value = metrics.get(name)
        if value is None:
            missed.append(f"{name}: the goal is {goal}, and score() gives no {name!r}")
        elif not _COMPARISONS[comparison](value, limit):
            missed.append(f"{name} is {value:.4g}, the goal is {goal}")
    return missed
