"""Holds `/metrics` against what the clients counted.

for fault in differences(ledger, await operator.metrics(), MODELS): ...
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from tests.chaos.ledger import Kind, Ledger
from tests.chaos.models import LEFT, Model

CLASSES = ("2XX", "4XX", "5XX")


def differences(
    ledger: Ledger, before: Iterable[Any], after: Iterable[Any], models: Iterable[Model]
) -> Iterator[str]:
    """Where the metrics and the clients' counts differ.

    `before` are the samples from before the first request. `after` were read when all had been answered.
    """
    counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for samples, sign in ((before, -1), (after, 1)):
        for sample in samples:
            counted[sample.name][sample.labels.get("model_name", "")] += sign * sample.value
    yield from _statuses(ledger, counted)
    for model in models:
        yield from _requests(ledger, counted, model)


def _statuses(ledger: Ledger, counted: dict[str, Counter[str]]) -> Iterator[str]:
    """Answers by status. Of clients that left, the server knows whether it answered; the clients do not."""
    completed = int(counted["torchport_completed_requests_total"][LEFT.name])
    failed = int(counted["torchport_failed_requests_total"][LEFT.name])
    # A call that its client cancelled may have been completed by the worker without having been answered.
    unknown = {"2XX": (completed - ledger.cancelled, completed), "4XX": (0, 0), "5XX": (0, failed)}
    for name in CLASSES:
        low, high = (ledger.statuses[name] + max(0, bound) for bound in unknown[name])
        got = int(sum(counted[f"Requests{name}_total"].values()))
        if not low <= got <= high:
            bounds = str(low) if low == high else f"{low} to {high}"
            yield f"Requests{name} is {got}, the clients had {bounds}"


def _requests(ledger: Ledger, counted: dict[str, Counter[str]], model: Model) -> Iterator[str]:
    """Requests to one model, by how they ended."""
    ends = ledger.ends[model.name]
    # Those that left, or had no answer, may or may not have come into a queue.
    unknown = ends[Kind.FAULT] + (ledger.left + ledger.cancelled if model is LEFT else 0)
    expired, killed = ends[Kind.EXPIRED], ends[Kind.KILLED]
    done = ends[Kind.ANSWERED] + ends[Kind.HANDLER]
    for name, low, high in (
        ("ts_inference_requests_total", done + expired + killed, 0),
        # The worker may complete what its client no longer waits for.
        ("torchport_completed_requests_total", done, expired),
        ("torchport_failed_requests_total", killed, expired),
        ("torchport_expired_requests_total", expired, 0),
        ("torchport_rejected_requests_total", 0, 0),
    ):
        got, most = int(counted[name][model.name]), low + high + unknown
        if not low <= got <= most:
            bounds = str(low) if low == most else f"{low} to {most}"
            yield f"{name} of {model.name} is {got}, the clients had {bounds}"


def total(samples: Iterable[Any], name: str) -> int:
    """The sum of a metric over all models."""
    return int(sum(sample.value for sample in samples if sample.name == name))
