"""The metrics that handlers keep by `context.metrics`, as Prometheus gets them.

    metrics = HandlerMetrics("host", taken={"Requests2XX"}, registered=registry.models)
    metrics.add("linear", samples)
    families = list(metrics.collect())

No handler can spoil what Prometheus reads, of the server or of another model: names of the server's own
metrics, labels that Prometheus refuses, and more series than a model may have are dropped. What is dropped
is counted in `torchport_dropped_metric_values_total`, and said once in the log.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from torchport.server.models.statistics import Histogram
from torchport.server.wire import DROPPED, MetricValue

logger = logging.getLogger(__name__)

HISTOGRAM_MS = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0)
"""Bounds in milliseconds of the histograms that handlers keep; a larger value counts as +Inf."""

_HELP = {
    "ShadowRows": "Rows that a shadow ran again on its second backend",
    "ShadowDisagreements": "Rows on which a shadow's second backend disagrees with the one that served",
    "ShadowDrops": "Rows that were sampled for a shadow and not run again",
    "ShadowMaxDifference": "Largest difference of two numbers that a worker's shadow has seen",
}
"""Help texts of the metrics that torchport's own handlers keep."""

SERIES_PER_MODEL = 1000
"""Maximum number of series of one model, all versions together; values of more series are dropped."""

MANY_SERIES = 10_000
"""Number of series from which on those of models that are not registered any more are forgotten."""

MAX_LABELS = 32
MAX_TEXT = 256
"""Maximum number of a metric's labels, and length in characters of a name or a label; others are dropped."""

OWN_PREFIX = "torchport_"
"""Names that begin so are the server's own."""

WARNINGS_PER_MODEL = 100
"""Maximum number of lines in the log about what is dropped of a model."""

Key = tuple[str, str, tuple[str, ...], tuple[str, ...]]
"""A series: the metric's name and kind, its labels' names, and their values."""

_LABEL = re.compile(r"[^A-Za-z0-9_]")
_NAME = re.compile(r"[^A-Za-z0-9_:]")
_SUFFIXES = ("", "_total", "_bucket", "_count", "_sum", "_created")


class Refused(Exception):
    """A value that is dropped; `reason` is a label of the metric that counts it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class HandlerMetrics:
    """All series of all models' handlers.

    `taken` are the names of the server's own metrics; `registered` are the models that there are now.
    """

    def __init__(self, host: str, *, taken: Collection[str], registered: Collection[str]) -> None:
        self._host, self._registered = host, registered
        self._taken = frozenset(name + suffix for name in taken for suffix in _SUFFIXES)
        self._values: dict[Key, float | Histogram] = {}
        self._owners: dict[Key, str] = {}
        """The model that had the series first; it counts as that model's."""
        self._counts: dict[str, int] = {}
        self._kinds: dict[str, str] = {}
        self._lines: set[str] = set()
        self._known: dict[tuple[str, str, tuple[tuple[str, str], ...]], Key] = {}
        self._orders: dict[tuple[str, frozenset[str]], tuple[str, ...]] = {}
        """The labels of a metric in the order in which they first came."""
        self._dropped: dict[tuple[str, str], float] = {}
        self._said: dict[str, set[tuple[str, str]]] = {}

    def add(self, model: str, samples: list[MetricValue]) -> None:
        """Add the values that a model's handler gave."""
        for sample in samples:
            try:
                self._add(model, sample)
            except Refused as err:
                self._drop(model, sample, err)

    def collect(self) -> Iterator[Any]:
        """One family for each name, and the count of what was dropped."""
        families: dict[str, Any] = {}
        for (name, kind, names, values), value in self._values.items():
            family = families.get(name)
            if family is None:
                family = families[name] = _family(name, kind)
            if isinstance(value, Histogram):
                part = HistogramMetricFamily(name, "", labels=names)
                part.add_metric(values, value.buckets(), value.total)
                family.samples.extend(part.samples)
            else:
                family.add_sample(name, dict(zip(names, values, strict=True)), value)
        yield from families.values()
        dropped = CounterMetricFamily(
            f"{OWN_PREFIX}dropped_metric_values",
            "Values of handlers' metrics that were dropped",
            labels=("model_name", "reason"),
        )
        for key, count in sorted(self._dropped.items()):
            dropped.add_metric(key, count)
        yield dropped

    def _add(self, model: str, sample: MetricValue) -> None:
        if sample.kind == DROPPED:
            raise Refused("too_many", "too many values between two answers")
        raw = (sample.name, sample.kind, tuple(sample.labels))
        key = self._known.get(raw)
        if key is None:
            key = self._key(sample)
        if key[1] != "gauge" and not math.isfinite(sample.value):
            raise Refused("value", f"{sample.value} cannot be added to a {key[1]}")
        if key[1] == "counter" and sample.value < 0:
            raise Refused("value", f"a counter goes up, and not by {sample.value}")
        if key not in self._values:
            self._make(model, key)
        if raw not in self._known:
            if len(self._known) > 2 * MANY_SERIES:
                self._known.clear()
            self._known[raw] = key
        value = self._values[key]
        if isinstance(value, Histogram):
            value.add(sample.value)
        else:
            self._values[key] = value + sample.value if key[1] == "counter" else sample.value

    def _make(self, model: str, key: Key) -> None:
        """Begin a series.

        Raises:
            Refused: the name is another metric's, or the model has as many series as it may.
        """
        name, kind = key[0], key[1]
        lines = _lines(name, kind)
        if name not in self._kinds:
            if lines & self._taken or name.startswith(OWN_PREFIX):
                raise Refused("name", "the server has a metric of that name")
            if lines & self._lines:
                raise Refused("name", "its samples would have the names of another metric's")
        elif self._kinds[name] != kind:
            raise Refused("type", f"it is a {self._kinds[name]} already, and cannot be a {kind} too")
        if self._counts.get(model, 0) >= SERIES_PER_MODEL:
            raise Refused("series", f"the model has {SERIES_PER_MODEL} series, which is as many as may be")
        if len(self._values) >= MANY_SERIES:
            self._forget()
        self._kinds[name] = kind
        self._lines |= lines
        self._owners[key] = model
        self._counts[model] = self._counts.get(model, 0) + 1
        self._values[key] = Histogram(HISTOGRAM_MS) if kind == "histogram" else 0.0

    def _forget(self) -> None:
        """Forget the series of models that are not registered any more."""
        gone = self._counts.keys() - set(self._registered)
        if not gone:
            return
        for key in [key for key, model in self._owners.items() if model in gone]:
            del self._values[key], self._owners[key]
        for model in gone:
            del self._counts[model]
        self._known.clear()
        self._forget_orders()
        self._kinds = {name: kind for name, kind, _, _ in self._values}
        self._lines = {line for name, kind in self._kinds.items() for line in _lines(name, kind)}

    def _forget_orders(self) -> None:
        """Forget those of which there are no series."""
        self._orders = {(name, frozenset(labels)): labels for name, _, labels, _ in self._values}

    def _key(self, sample: MetricValue) -> Key:
        """The series of a value.

        Raises:
            Refused: Prometheus would refuse a label.
        """
        kind = sample.kind if sample.kind in ("counter", "histogram") else "gauge"
        if not sample.name or len(sample.name) > MAX_TEXT:
            raise Refused("name", f"a name of 1 to {MAX_TEXT} characters is expected")
        if len(sample.labels) > MAX_LABELS:
            raise Refused("labels", f"{len(sample.labels)} labels: at most {MAX_LABELS} are expected")
        labels: dict[str, str] = {}
        for name, text in sample.labels:
            cleaned = _cleaned(_LABEL, name)
            if not name or cleaned.startswith("__") or (cleaned == "le" and kind == "histogram"):
                raise Refused("labels", f"Prometheus knows no label {name[:80]!r}")
            if len(name) > MAX_TEXT or len(text) > MAX_TEXT:
                raise Refused("labels", f"label {name[:80]!r} is longer than {MAX_TEXT} characters")
            if cleaned == "Hostname":
                continue  # The host is the server's to tell.
            if cleaned in labels:
                raise Refused("labels", f"label {cleaned[:80]!r} comes twice")
            labels[cleaned] = text
        labels["Hostname"] = self._host
        metric = _cleaned(_NAME, sample.name)
        # The same labels in another order are the same series.
        if len(self._orders) > 2 * MANY_SERIES:
            self._forget_orders()
        names = self._orders.setdefault((metric, frozenset(labels)), tuple(labels))
        return metric, kind, names, tuple(labels[name] for name in names)

    def _drop(self, model: str, sample: MetricValue, err: Refused) -> None:
        counted = (model, err.reason)
        self._dropped[counted] = self._dropped.get(counted, 0.0) + (
            sample.value if sample.kind == DROPPED else 1.0
        )
        said = self._said.setdefault(model, set())
        what = (sample.name, err.reason)
        if what not in said and len(said) < WARNINGS_PER_MODEL:
            said.add(what)
            logger.warning("model %s: metric %r is dropped: %s", model, sample.name[:80], err)


def _lines(name: str, kind: str) -> set[str]:
    """The names of a metric's samples."""
    if kind == "histogram":
        return {name, f"{name}_bucket", f"{name}_count", f"{name}_sum"}
    return {name}


def _cleaned(refused: re.Pattern[str], name: str) -> str:
    """The name, with `_` for every character that Prometheus refuses."""
    cleaned = refused.sub("_", name)
    return f"_{cleaned}" if cleaned[:1].isdigit() else cleaned


def _family(name: str, kind: str) -> Any:
    text = _HELP.get(name, "Kept by a handler")
    if kind == "counter":
        return untotalled(name, text)
    return (HistogramMetricFamily if kind == "histogram" else GaugeMetricFamily)(name, text)


def untotalled(name: str, text: str) -> Any:
    """A metric family without the `_total` that the client library adds to counters."""
    if name.endswith("_total"):
        return Metric(name.removesuffix("_total"), text, "counter")
    return Metric(name, text, "unknown")
