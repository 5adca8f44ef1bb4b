"""What an SLO and a budget may say, and when an SLO is met."""

import pytest

from tests.serving_machine import figures
from torchport.errors import TuningRequestError
from torchport.optimize.tune.slo import Slo, parse_duration


@pytest.mark.parametrize(
    ("texts", "latency", "per_second"),
    [
        ([], {}, 0),
        (["p99=50ms"], {"p99": 50}, 0),
        (["p50=800us", "p95 <= 0.2s"], {"p50": 0.8, "p95": 200}, 0),
        (["p99=50ms,throughput>=100/s"], {"p99": 50}, 100),
        (["throughput>=12.5"], {}, 12.5),
    ],
)
def test_what_an_slo_may_say(texts, latency, per_second):
    slo = Slo.parse(texts)
    assert slo.latency_ms == pytest.approx(latency)
    assert slo.per_second == per_second


@pytest.mark.parametrize(
    "text",
    [
        *("", "fast", "p99", "p99=50", "p99=-5ms", "p99=0ms", "p98=5ms", "p99>=5ms", "throughput>=0/s"),
        *("p99=\u0665ms", "p\u0669\u0669=5ms", "throughput>=\u0661\u0660/s"),
        *(f"p99={'9' * 400}ms", f"throughput>={'9' * 400}/s", f"p99=0.{'0' * 400}1s"),
    ],
)
def test_what_no_slo_is(text):
    with pytest.raises(TuningRequestError, match="such as p99=50ms") as caught:
        Slo.parse([text])
    assert caught.value.exit_code == 2


def test_an_slo_says_a_thing_once():
    with pytest.raises(TuningRequestError, match="each once"):
        Slo.parse(["p99=50ms", "p99=40ms"])


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("1h", 3600)])
def test_a_budget_is_a_time(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "soon", "5 days", "-1m", "\u0665m", "9" * 400])
def test_what_no_budget_is(text):
    with pytest.raises(TuningRequestError, match="such as 90s or 5m"):
        parse_duration(text)


def test_an_slo_is_met_at_its_limit_and_never_by_what_fails():
    slo = Slo.parse(["p99=50ms"])
    assert slo.met(figures(10, 50))
    assert not slo.met(figures(10, 50.1))
    assert slo.miss(figures(10, 75)) == pytest.approx(1.5)
    assert not slo.met(figures(10, 1, errors=1))
