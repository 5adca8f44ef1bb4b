"""Which requests travel together, which wait, and which are forgotten."""

import time

import pytest

from torchport.server.dispatch.batch_queue import SEARCH_EVERY_S, BatchQueue
from torchport.server.dispatch.job import Job, Kind
from torchport.server.wire import Row


class Caller:
    def __init__(self):
        self.is_gone, self.told = False, []

    def answered(self, job, answer):
        self.told.append(answer)

    def streamed(self, job, piece):
        self.told.append(piece)

    def failed(self, job, error):
        self.told.append(error)


def job(name="x", kind=Kind.PREDICT):
    return Job(kind, Row(name, [], []), Caller())


def names(batch):
    return [j.row.id for j in batch]


@pytest.fixture
def queue():
    return BatchQueue(4)


def test_in_order_and_no_more_than_a_batch(queue):
    for name in "abcd":
        queue.put(job(name))
    assert names(queue.take(3)) == ["a", "b", "c"]
    assert names(queue.take(3)) == ["d"]
    assert queue.take(3) == []


def test_kinds_do_not_mix(queue):
    for name, kind in (("a", Kind.PREDICT), ("b", Kind.PREDICT), ("c", Kind.EXPLAIN), ("d", Kind.PREDICT)):
        queue.put(job(name, kind))
    assert [names(queue.take(8)) for _ in range(3)] == [["a", "b"], ["c"], ["d"]]


def test_full_is_full_until_one_leaves(queue, monkeypatch):
    jobs = [job(name) for name in "abcd"]
    for each in jobs:
        queue.put(each)
    assert queue.is_full()
    jobs[1].caller.is_gone = True
    later = time.monotonic() + 2 * SEARCH_EVERY_S
    monkeypatch.setattr("time.monotonic", lambda: later)
    assert not queue.is_full()
    queue.put(job("e"))
    assert len(queue) == 4
    assert names(queue.take(8)) == ["a", "c", "d", "e"]
    assert jobs[1].is_done
    assert jobs[1].caller.told == []


def test_one_that_was_answered_while_it_waited_is_passed_over(queue):
    late, other = job("late"), job("other")
    queue.put(late)
    queue.put(other)
    assert queue.settle(late)
    late.fail(TimeoutError("its time was up"))
    assert not queue.settle(late)
    assert len(queue) == 1
    assert names(queue.take(8)) == ["other"]
    assert len(queue) == 0


def test_what_is_put_back_goes_first_and_alone(queue):
    for name in "cd":
        queue.put(job(name))
    again = [job("a"), job("b")]
    for each in again:
        each.alone = True
    queue.put_back(again)
    assert [names(queue.take(8)) for _ in range(3)] == [["a"], ["b"], ["c", "d"]]


def test_what_is_put_back_is_never_too_much(queue):
    for name in "abcd":
        queue.put(job(name))
    queue.put_back([job("e"), job("f")])
    assert len(queue) == 6


def test_a_job_is_answered_once():
    once = job()
    once.stream("piece")
    once.finish("last")
    once.finish("again")
    once.fail(ValueError("late"))
    once.stream("late piece")
    assert once.caller.told == ["piece", "last"]
