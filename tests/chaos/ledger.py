"""What clients asked and what they got, held against what the server promises.

    asked = ledger.ask(ECHO, door="REST")
    ledger.answered(asked, answer)       # or ledger.cut(asked, reason)
    ledger.faults                        # what the server did not keep

The promise (docs/serving.md): each request that was sent whole has exactly one answer, its own.
- The answer is the model's, with the status that the handler gave.
- 500 with the number of an incident: the request cost its workers their lives, or had them when somebody
  else killed or stopped them: twice, three times after a SIGKILL, once if the worker hung with it alone.
- 504: the time was up that the client itself had set.
- 404, or 503 with Retry-After: the model was not there, because it was being unregistered or registered.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from typing import Any

from tests.chaos.http_connection import Answer
from tests.chaos.models import FIRST_VERSION, LEFT, ROLLED, VISITOR, Model
from torchport.server.models.version import LOSSES_FROM_OUTSIDE

MARGIN_S = 0.05
"""Seconds by which two clocks of this process may differ about what came first."""


class Kind(Enum):
    """How a request ended."""

    ANSWERED = "answered"
    HANDLER = "failed by its handler"
    KILLED = "died with its workers"
    EXPIRED = "expired"
    AWAY = "refused while its model was away"
    FAULT = "fault"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request. `expects` is the status that the handler gives; None: it answers.

    `has_limit`: whether the client set a time limit. `ends_workers`: whether the handler exits.
    """

    id: str
    model: Model
    door: str
    sent: float
    expects: int | None = None
    padding: int = 0
    has_limit: bool = False
    ends_workers: bool = False


class Period:
    """Times at which something was so; an open one has no end yet."""

    def __init__(self) -> None:
        self._spans: list[list[float]] = []

    def begin(self) -> None:
        self._spans.append([time.monotonic() - MARGIN_S, float("inf")])

    def end(self) -> None:
        self._spans[-1][1] = time.monotonic() + MARGIN_S

    def meets(self, start: float, end: float) -> bool:
        """Whether it was so at any time between the two."""
        return any(first <= end and start <= last for first, last in self._spans)


@dataclass
class Ledger:
    """All requests of a run."""

    started: float = field(default_factory=time.monotonic)
    faults: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    """What the run did to the server, and the faults, in order."""
    ends: dict[str, Counter[Kind]] = field(default_factory=lambda: defaultdict(Counter))
    """How requests to each model ended."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Answers by the class of their status, over all APIs, but for those of the model `left`."""
    refused: int = 0
    """Requests refused for their framing or their size, before any API saw them."""
    left: int = 0
    """Requests that were sent whole to the model `left`, and whose client left."""
    cancelled: int = 0
    """Calls by gRPC that their client cancelled."""
    exits: int = 0
    """Requests that made the handler end its worker."""
    kills: list[float] = field(default_factory=list)
    """When the run has killed workers."""
    hung: int = 0
    """Requests that died with fewer workers than the run has killed meanwhile: they had one that hung."""
    away: Period = field(default_factory=Period)
    """When the visitor was not there."""
    defaults: dict[str, Period] = field(default_factory=dict)
    """When each version of the rolled model may have been the default one."""
    _numbers: Any = field(default_factory=count)

    def __post_init__(self) -> None:
        self.allow_default(FIRST_VERSION)

    def allow_default(self, version: str) -> None:
        """Note that from now on a version of the rolled model may be the default one."""
        self.defaults[version] = Period()
        self.defaults[version].begin()

    def end_default(self, version: str) -> None:
        """Note that a version has ceased to be the default one."""
        self.defaults[version].end()

    def ask(self, model: Model, door: str, **more: Any) -> Asked:
        """A new request, with an id that no other has."""
        return Asked(
            id=f"{door}-{next(self._numbers)}", model=model, door=door, sent=time.monotonic(), **more
        )

    def note(self, text: str) -> None:
        """Note an event, with its time."""
        self.events.append(f"{time.monotonic() - self.started:8.2f} s  {text}")

    def fault(self, text: str) -> None:
        """Note what must not have happened."""
        self.note(f"fault: {text}")
        self.faults.append(self.events[-1].replace("fault: ", "", 1))

    def count(self, status: int) -> None:
        """Count an answer that `/metrics` must count too."""
        self.statuses[f"{2 if status < 400 else status // 100}XX"] += 1

    def answered(self, asked: Asked, answer: Answer) -> Kind:
        """Judge an answer."""
        if asked.model is not LEFT:
            self.count(answer.status)
        kind = self._judge(asked, answer)
        self.ends[asked.model.name][kind] += 1
        if asked.ends_workers:
            self.exits += 1
        return kind

    def cut(self, asked: Asked, reason: object) -> None:
        """Note a request that has no answer."""
        self.ends[asked.model.name][Kind.FAULT] += 1
        self.fault(f"lost: {asked.id} to {asked.model.name}: {reason}")

    def requests(self, *kinds: Kind) -> int:
        """Number of requests that ended in these ways."""
        return sum(found[kind] for found in self.ends.values() for kind in kinds)

    def _judge(self, asked: Asked, answer: Answer) -> Kind:
        status, now = answer.status, time.monotonic()
        if answer.headers.get("x-request-id", asked.id) != asked.id:
            return self._wrong(asked, answer)
        if status == 200 and asked.expects is None and not asked.ends_workers:
            return self._judge_content(asked, answer)
        if asked.expects == status:
            own = f'"id": "{asked.id}"'.encode() in answer.body or b'"id"' not in answer.body
            return Kind.HANDLER if own else self._wrong(asked, answer)
        if status == 500 and b"Worker died. Incident" in answer.body:
            meanwhile = sum(asked.sent - MARGIN_S <= moment <= now for moment in self.kills[-100:])
            if not asked.ends_workers and meanwhile < LOSSES_FROM_OUTSIDE:
                self.hung += 1
            return Kind.KILLED
        if status == 504 and asked.has_limit:
            return Kind.EXPIRED
        is_away = status == 404 or (status == 503 and "retry-after" in answer.headers)
        if is_away and asked.model is VISITOR and self.away.meets(asked.sent, now):
            return Kind.AWAY
        took = f"{now - asked.sent:.2f} s"
        self.fault(
            f"unexpected: {asked.id} to {asked.model.name} after {took}: {status} {answer.body[:300]!r}"
        )
        return Kind.FAULT

    def _judge_content(self, asked: Asked, answer: Answer) -> Kind:
        try:
            content = json.loads(answer.body)
            own = content["id"] == asked.id and len(content["padding"]) == asked.padding
        except (ValueError, KeyError, TypeError):
            own = False
        if not own:
            return self._wrong(asked, answer)
        if asked.model is ROLLED:
            version = content["version"]
            period = self.defaults.get(version)
            if period is None or not period.meets(asked.sent, time.monotonic()):
                self.fault(f"wrong version: {asked.id} was answered by {version}, which was not the default")
                return Kind.FAULT
        return Kind.ANSWERED

    def _wrong(self, asked: Asked, answer: Answer) -> Kind:
        self.fault(f"wrong answer: {asked.id} to {asked.model.name} got {answer.body[:300]!r}")
        return Kind.FAULT
