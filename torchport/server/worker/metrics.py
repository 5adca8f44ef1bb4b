"""Collects a handler's metrics: `context.metrics`, with TorchServe's calls.

context.metrics.add_time("Decoding", 3.2, unit="ms")
context.metrics.add_counter("Rejected", 1)
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from torchport.server.wire import DROPPED, MetricValue

logger = logging.getLogger(__name__)

MAX_SAMPLES = 2000
"""Maximum number of values between two reports; more are dropped, because the front adds them one by one."""

_TIME_UNITS = ("ms", "s")
_SIZE_UNITS = ("MB", "kB", "GB", "B")


class Metrics:
    """Metric values that a handler has added since the last `take`.

    Dimensions are objects with `name` and `value`, as TorchServe's are.
    """

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.request_ids: Any = None
        self._samples: list[MetricValue] = []
        self._dropped = 0
        self._known: dict[tuple[str, str], Metric] = {}

    def take(self) -> list[MetricValue]:
        """Return the values that were added since the last call."""
        taken, self._samples = self._samples, []
        if self._dropped:
            taken.append(MetricValue("", DROPPED, "", float(self._dropped), []))
            self._dropped = 0
        return taken

    def set_request_ids(self, request_ids: Any) -> None:
        self.request_ids = request_ids

    def add_metric(
        self,
        name: str,
        value: float,
        unit: str,
        idx: int | None = None,
        dimensions: Sequence[Any] = (),
        metric_type: Any = "counter",
    ) -> None:
        self._add(name, value, unit, dimensions, metric_type)

    def add_counter(
        self, name: str, value: float, idx: int | None = None, dimensions: Sequence[Any] = ()
    ) -> None:
        self._add(name, value, "count", dimensions, "counter")

    def add_time(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "ms",
        dimensions: Sequence[Any] = (),
        metric_type: Any = "gauge",
    ) -> None:
        if unit not in _TIME_UNITS:
            reason = f"unit {unit!r} of a time: one of {_TIME_UNITS} is expected"
            raise _error("MetricsCacheValueError", ValueError, reason)
        self._add(name, value, unit, dimensions, metric_type)

    def add_size(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "MB",
        dimensions: Sequence[Any] = (),
        metric_type: Any = "gauge",
    ) -> None:
        if unit not in _SIZE_UNITS:
            raise ValueError(f"unit {unit!r} of a size: one of {_SIZE_UNITS} is expected")
        self._add(name, value, unit, dimensions, metric_type)

    def add_percent(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        dimensions: Sequence[Any] = (),
        metric_type: Any = "gauge",
    ) -> None:
        self._add(name, value, "percent", dimensions, metric_type)

    def add_error(self, name: str, value: float, dimensions: Sequence[Any] = ()) -> None:
        self._add(name, value, "", dimensions, "counter", level="Error")

    def add_metric_to_cache(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] = (),
        metric_type: Any = "counter",
    ) -> Metric:
        """Declare a metric, whose `add_or_update` then adds values.

        Raises:
            TypeError: the name or the unit is not text.
        """
        for value in (metric_name, unit):
            if not isinstance(value, str):
                raise _error("MetricsCacheTypeError", TypeError, f"{value!r}: text is expected")
        kind = _kind(metric_type)
        metric = self._known[metric_name, kind] = Metric(self, metric_name, unit, list(dimension_names), kind)
        return metric

    def get_metric(self, metric_name: str, metric_type: Any = "counter") -> Metric:
        """The metric that was declared with this name.

        Raises:
            KeyError: no such metric was declared.
        """
        metric = self._known.get((metric_name, _kind(metric_type)))
        if metric is None:
            reason = f"no metric {metric_name!r} of the type {_kind(metric_type)!r} was declared"
            raise _error("MetricsCacheKeyError", KeyError, reason)
        return metric

    def _add(
        self,
        name: str,
        value: float,
        unit: str,
        dimensions: Sequence[Any],
        metric_type: Any,
        level: str = "Model",
    ) -> None:
        labels = [(str(d.name), str(d.value)) for d in dimensions]
        names = [label for label, _ in labels]
        if level == "Model" and "ModelName" not in names:
            labels.append(("ModelName", self.model_name))
        if "Level" not in names:
            labels.append(("Level", level))
        self.record(name, _kind(metric_type), unit, value, labels)

    def record(self, name: str, kind: str, unit: str, value: float, labels: list[tuple[str, str]]) -> None:
        """Keep a value.

        A counter's negative value is logged and ignored, as on TorchServe.
        """
        if kind == "counter" and value < 0:
            logger.error("metric %s: a counter goes up, and not by %s", name, value)
            return
        if len(self._samples) >= MAX_SAMPLES:
            self._dropped += 1
            return
        self._samples.append(MetricValue(str(name), kind, unit, float(value), labels))


class Metric:
    """A metric that `add_metric_to_cache` declared."""

    def __init__(self, owner: Metrics, name: str, unit: str, dimension_names: list[str], kind: str) -> None:
        self._owner = owner
        self.metric_name, self.unit = name, unit
        self.dimension_names, self.metric_type = dimension_names, kind

    def add_or_update(
        self, value: float, dimension_values: Sequence[str] = (), request_id: str = "", **_: Any
    ) -> None:
        if len(dimension_values) != len(self.dimension_names):
            given, names = list(dimension_values), self.dimension_names
            logger.error("metric %s: values %s for the dimensions %s", self.metric_name, given, names)
            return
        labels = [(n, str(v)) for n, v in zip(self.dimension_names, dimension_values, strict=True)]
        self._owner.record(self.metric_name, self.metric_type, self.unit, value, labels)

    def update(self, value: float, request_id: str = "", dimensions: Sequence[Any] = ()) -> None:
        self.dimension_names = [dimension.name for dimension in dimensions]
        self.add_or_update(value, [dimension.value for dimension in dimensions])


def _error(name: str, otherwise: type[Exception], message: str) -> Exception:
    """TorchServe's exception if the handler has imported it, else `otherwise`."""
    errors = sys.modules.get("ts.metrics.metric_cache_errors")
    kind: type[Exception] = getattr(errors, name, otherwise)
    return kind(message)


def _kind(metric_type: Any) -> str:
    """The metric type in lower case, from text or TorchServe's `MetricTypes`."""
    return str(getattr(metric_type, "value", metric_type)).lower()
