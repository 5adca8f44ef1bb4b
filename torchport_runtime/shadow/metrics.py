"""Reports a shadow's metrics by a handler's `context.metrics`.

add_counts(metrics, {"ShadowRows": 3, "ShadowDrops": 0}, is_first=True)
add_difference(metrics, 0.25)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Dimension:
    """A metric's label, as TorchServe's metrics take it."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"


def add_counts(metrics: Any, counted: Mapping[str, int], *, is_first: bool) -> None:
    """Add counts to their counters; the first time also zeros.

    Prometheus sees no increase of a counter that did not exist before.
    """
    for name, value in counted.items():
        if is_first:
            metrics.add_counter(name, 0)
        if value:
            metrics.add_counter(name, value)


def add_difference(metrics: Any, greatest: float) -> None:
    """Report the maximum difference that this worker has seen."""
    worker = [Dimension("Worker", str(os.getpid()))]
    metrics.add_metric("ShadowMaxDifference", greatest, "", dimensions=worker, metric_type=_gauge())


def _gauge() -> Any:
    """TorchServe's type of a gauge, if its metrics are loaded."""
    types = sys.modules.get("ts.metrics.metric_type_enum")
    return "gauge" if types is None else types.MetricTypes.GAUGE
