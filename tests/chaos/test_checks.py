"""The checks of a chaos run find what they look for."""

import json
import os
import subprocess
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.chaos.counts import differences
from tests.chaos.http_connection import Answer, Cut
from tests.chaos.ledger import Kind, Ledger
from tests.chaos.leftovers import MARK, Footprint, marked_processes
from tests.chaos.models import ECHO, FAILING, ROLLED, SLOW, VISITOR
from tests.server.waiting import wait_until

INCIDENT = b'{"message": "Worker died. Incident 7"}'


def answer(asked, status=200, **content):
    body = {"id": asked.id, "version": "1.0", "padding": "", **content}
    return Answer(status, {}, json.dumps(body).encode())


@pytest.fixture
def ledger():
    return Ledger()


def test_an_answer_of_its_own_is_no_fault(ledger):
    asked = ledger.ask(ECHO, "REST")
    assert ledger.answered(asked, answer(asked)) is Kind.ANSWERED
    assert ledger.faults == []


@pytest.mark.parametrize("content", [{"id": "REST-7"}, {"padding": "x"}, {"id": None}])
def test_an_answer_of_another_is_a_fault(ledger, content):
    asked = ledger.ask(ECHO, "REST")
    assert ledger.answered(asked, answer(asked, **content)) is Kind.FAULT
    assert "wrong answer" in ledger.faults[0]


def test_an_answer_with_the_request_id_of_another_is_a_fault(ledger):
    asked = ledger.ask(ECHO, "REST")
    found = replace(answer(asked), headers={"x-request-id": "REST-7"})
    assert ledger.answered(asked, found) is Kind.FAULT


@pytest.mark.parametrize("status", [404, 429, 500, 503, 504])
def test_a_status_that_was_not_promised_is_a_fault(ledger, status):
    asked = ledger.ask(ECHO, "REST")
    assert ledger.answered(asked, answer(asked, status)) is Kind.FAULT
    assert f"{status}" in ledger.faults[0]


def test_a_request_without_an_answer_is_a_fault(ledger):
    ledger.cut(ledger.ask(ECHO, "REST"), Cut("no answer", 60.0))
    assert "lost" in ledger.faults[0]


def test_a_time_limit_and_a_failure_that_were_asked_for_are_none(ledger):
    limited = ledger.ask(SLOW, "REST", has_limit=True)
    assert ledger.answered(limited, answer(limited, 504)) is Kind.EXPIRED
    failing = ledger.ask(FAILING, "REST", expects=422)
    assert ledger.answered(failing, answer(failing, 422)) is Kind.HANDLER
    assert ledger.faults == []


def test_a_model_may_be_refused_only_while_it_is_away(ledger):
    ledger.away.begin()
    asked = ledger.ask(VISITOR, "REST")
    assert ledger.answered(asked, answer(asked, 404)) is Kind.AWAY
    ledger.away.end()
    later = replace(ledger.ask(VISITOR, "REST"), sent=time.monotonic() + 1)
    assert ledger.answered(later, answer(later, 404)) is Kind.FAULT


def test_a_version_may_answer_only_while_it_is_the_default_one(ledger):
    ledger.allow_default("2.0")
    ledger.end_default("1.0")
    asked = ledger.ask(ROLLED, "REST")
    assert ledger.answered(asked, answer(asked, version="1.0")) is Kind.ANSWERED
    later = replace(asked, sent=time.monotonic() + 1)
    assert ledger.answered(later, answer(later, version="2.0")) is Kind.ANSWERED
    assert ledger.answered(later, answer(later, version="1.0")) is Kind.FAULT


def test_requests_that_died_without_kills_enough_are_counted(ledger):
    asked = ledger.ask(ECHO, "REST")
    ledger.kills += [time.monotonic()] * 2
    assert ledger.answered(asked, Answer(500, {}, INCIDENT)) is Kind.KILLED
    assert ledger.hung == 1
    ledger.kills.append(time.monotonic())
    ledger.answered(asked, Answer(500, {}, INCIDENT))
    assert ledger.hung == 1


def samples(**values):
    labels = {"model_name": ECHO.name}
    return [SimpleNamespace(name=name, value=value, labels=labels) for name, value in values.items()]


def test_metrics_that_differ_from_the_clients_counts_are_found(ledger):
    for _ in range(3):
        asked = ledger.ask(ECHO, "REST")
        ledger.answered(asked, answer(asked))
    counted = {"ts_inference_requests_total": 3, "torchport_completed_requests_total": 3}
    before = samples(Requests2XX_total=4)
    assert list(differences(ledger, before, samples(Requests2XX_total=7, **counted), [ECHO])) == []
    found = list(differences(ledger, before, samples(Requests2XX_total=8, **counted), [ECHO]))
    assert found == ["Requests2XX is 4, the clients had 3"]
    counted["torchport_completed_requests_total"] = 2
    found = list(differences(ledger, before, samples(Requests2XX_total=7, **counted), [ECHO]))
    assert found == ["torchport_completed_requests_total of echo is 2, the clients had 3"]


STEADY = Footprint(
    processes=Counter(python=3),
    descriptors=Counter(socket=9),
    threads=40,
    memory_mb=90.0,
    worker_memory_mb=30.0,
    unpacked=4,
)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"processes": Counter(python=4)}, "1 processes more: 1 python"),
        ({"processes": Counter(python=2)}, "1 processes fewer: 1 python"),
        ({"descriptors": Counter(socket=9, pipe=9)}, "descriptors more: 9 pipe"),
        ({"threads": 60}, "20 threads more"),
        ({"memory_mb": 190.0}, "the front has 100 MB more"),
        ({"worker_memory_mb": 90.0}, "a worker has 60 MB more"),
        ({"unpacked": 5}, "5 archives are unpacked, before it were 4"),
    ],
)
def test_what_is_left_over_is_named(more, said):
    assert STEADY.growth(STEADY) == []
    assert STEADY.growth(replace(STEADY, **more)) == [said]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads environments in /proc")
def test_an_orphan_is_found_by_its_mark():
    # The shell ends, its child stays: the child's output must not be waited for.
    subprocess.run(
        ["sh", "-c", "sleep 60 >/dev/null 2>&1 &"], env={**os.environ, MARK: "this test"}, check=True
    )
    wait_until(lambda: marked_processes("this test"))
    (orphan,) = marked_processes("this test")
    orphan.kill()
    wait_until(lambda: not marked_processes("this test"))
