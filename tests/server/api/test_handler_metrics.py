"""What handlers count and time cannot spoil what Prometheus reads."""

from __future__ import annotations

import logging
import re
from collections import Counter
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from torchport.server.api import handler_metrics
from torchport.server.api.exposition import text_of
from torchport.server.api.handler_metrics import SERIES_PER_MODEL, HandlerMetrics
from torchport.server.wire import DROPPED, MetricValue

DROPS = "torchport_dropped_metric_values_total"


@pytest.fixture
def metrics() -> HandlerMetrics:
    return HandlerMetrics(
        "here", taken={"Requests2XX", "ts_queue", "torchport_queue_seconds"}, registered=["m"]
    )


def value(name: str, kind: str = "counter", number: float = 1.0, **labels: str) -> MetricValue:
    return MetricValue(name, kind, "count", number, list(labels.items()))


def shown(metrics: HandlerMetrics) -> dict[tuple[Any, ...], float]:
    """All samples by name and labels, read as strictly as Prometheus reads them."""
    text = text_of(metrics.collect())
    names = Counter(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert set(names.values()) == {1}, names
    samples = [
        (sample.name, *sorted((k, v) for k, v in sample.labels.items() if k != "Hostname"), sample.value)
        # The library would read another name for a counter than the one that is there.
        for family in text_string_to_metric_families(text.replace(" counter\n", " untyped\n"))
        for sample in family.samples
    ]
    found = {tuple(parts): number for *parts, number in samples}
    assert len(found) == len(samples)
    return found


def drops(metrics: HandlerMetrics, reason: str) -> float:
    return shown(metrics).get((DROPS, ("model_name", "m"), ("reason", reason)), 0.0)


@pytest.mark.parametrize(
    ("name", "kind", "labels", "reason"),
    [
        ("a", "counter", {"": "x"}, "labels"),
        ("a", "counter", {"__name__": "x"}, "labels"),
        ("a", "gauge", {"__x": "x"}, "labels"),
        ("a", "gauge", {"ab c": "x", "ab_c": "y"}, "labels"),
        ("a", "histogram", {"le": "5"}, "labels"),
        ("a", "counter", {"long": "x" * 1000}, "labels"),
        ("a", "counter", {f"l{n}": "x" for n in range(50)}, "labels"),
        ("", "counter", {}, "name"),
        ("x" * 1000, "counter", {}, "name"),
        ("Requests2XX", "gauge", {}, "name"),
        ("Requests2XX", "counter", {}, "name"),
        ("ts_queue_total", "counter", {}, "name"),
        ("torchport_queue_seconds_bucket", "gauge", {"le": "1"}, "name"),
        ("torchport queue_seconds", "histogram", {}, "name"),
        ("torchport_of_a_handler", "gauge", {}, "name"),
    ],
)
def test_what_prometheus_would_refuse_is_dropped_counted_and_said(
    metrics: HandlerMetrics,
    caplog: pytest.LogCaptureFixture,
    name: str,
    kind: str,
    labels: dict[str, str],
    reason: str,
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            metrics.add("m", [value(name, kind, **labels), value("good")])
    assert shown(metrics) == {
        ("good",): 3.0,
        (DROPS, ("model_name", "m"), ("reason", reason)): 3.0,
    }
    assert len(caplog.records) == 1
    assert "model m: metric" in caplog.text


def test_a_name_has_one_type_and_any_labels(metrics: HandlerMetrics) -> None:
    metrics.add("m", [value("a", "gauge", 2.0), value("a", "gauge", 3.0, part="x"), value("a", "counter")])
    metrics.add("m", [value("h", "histogram", 3.0), value("h_count", "gauge"), value("h_sum", "counter")])
    found = shown(metrics)
    assert (found[("a",)], found[("a", ("part", "x"))], found[("h_count",)]) == (2.0, 3.0, 1.0)
    assert drops(metrics, "type") == 1
    assert drops(metrics, "name") == 2


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
def test_a_counter_stays_a_number_that_goes_up(metrics: HandlerMetrics, number: float) -> None:
    metrics.add("m", [value("a"), value("a", "counter", number), value("a")])
    assert shown(metrics)[("a",)] == 2.0
    assert drops(metrics, "value") == 1


def test_one_model_has_its_own_share_of_the_series(metrics: HandlerMetrics) -> None:
    metrics.add("m", [value("a", user=str(number)) for number in range(SERIES_PER_MODEL + 7)])
    metrics.add("other", [value("b", user=str(number)) for number in range(10)])
    metrics.add("m", [value("a", user="0")])
    found = shown(metrics)
    assert sum(key[0] == "a" for key in found) == SERIES_PER_MODEL
    assert sum(key[0] == "b" for key in found) == 10
    assert found[("a", ("user", "0"))] == 2.0
    assert drops(metrics, "series") == 7


def test_series_of_models_that_have_gone_make_room(
    metrics: HandlerMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler_metrics, "MANY_SERIES", 20)
    metrics.add("gone", [value("a", user=str(number)) for number in range(15)])
    metrics.add("m", [value("b", user=str(number)) for number in range(15)])
    metrics.add("m", [value("a", "gauge", 4.0)])
    found = shown(metrics)
    assert sum(key[0] == "b" for key in found) == 15
    assert found[("a",)] == 4.0


def test_what_a_worker_dropped_is_counted_too(metrics: HandlerMetrics) -> None:
    metrics.add("m", [MetricValue("", DROPPED, "", 12.0, [])])
    assert drops(metrics, "too_many") == 12


def test_the_host_is_the_servers_to_tell(metrics: HandlerMetrics) -> None:
    metrics.add("m", [value("a", Hostname="elsewhere"), value("a")])
    assert shown(metrics)[("a",)] == 2.0


def test_labels_keep_the_order_in_which_they_first_came(metrics: HandlerMetrics) -> None:
    metrics.add("m", [value("a", Part="x", ModelName="m", Level="Model")])
    metrics.add("m", [value("a", Level="Model", Part="x", ModelName="m")])
    assert 'a{Part="x",ModelName="m",Level="Model",Hostname="here"} 2.0\n' in text_of(metrics.collect())


def test_orders_of_labels_that_are_never_shown_do_not_pile_up(
    metrics: HandlerMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler_metrics, "MANY_SERIES", 10)
    monkeypatch.setattr(handler_metrics, "SERIES_PER_MODEL", 1)
    metrics.add("m", [value("a", **{f"label{number}": "x"}) for number in range(1000)])
    assert len(metrics._orders) <= 21


def test_texts_are_escaped_and_families_selected(metrics: HandlerMetrics) -> None:
    metrics.add("m", [value("a", Part='quoted "x"\nand \\'), value("b", "histogram", 3.0)])
    text = text_of(metrics.collect(), only=["a", "b_count"])
    assert 'a{Part="quoted \\"x\\"\\nand \\\\",Hostname="here"} 1.0\n' in text
    assert re.findall(r"^(\w+)", text, re.MULTILINE) == ["a", "b_count"]
