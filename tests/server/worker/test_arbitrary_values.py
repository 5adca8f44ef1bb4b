"""Whatever objects a handler answers with, counts or raises, its worker sends what the front can read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.server.worker.in_process import Worker

ROWS = 2


class PredictionException(Exception):
    """TorchServe's, which handlers raise to refuse a batch: the worker knows it by its name."""

    def __init__(self, message: Any, error_code: Any) -> None:
        self.message, self.error_code = message, error_code


METHODS = (
    *("__str__", "__repr__", "__format__", "__len__", "__iter__", "__int__", "__index__", "__float__"),
    *("__bool__", "__eq__", "__hash__", "__bytes__", "__lt__", "__getitem__", "__call__", "__getattr__"),
    *("items", "keys", "encode", "decode", "lower", "tobytes", "name", "value"),
)
BASES: tuple[type, ...] = (object, str, bytes, bytearray, int, float, list, dict, Exception)
FAULTS = (
    *(ValueError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError, OSError),
    *(KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, StopIteration),
)


@dataclass(frozen=True)
class Plan:
    """An object of a class whose methods give what nobody expects, or raise.

    Examples hold its plan, and not the object, which hypothesis could not print.
    """

    base: type
    methods: dict[str, Any]
    fault: type[BaseException]

    def made(self) -> Any:
        members = {name: self._method(result) for name, result in self.methods.items()}
        return type("Hostile", (self.base,), members)()

    def _method(self, result: Any) -> Callable[..., Any]:
        def call(*_: Any) -> Any:
            if result is None:
                raise self.fault("no")
            return made(result)

        return call


@dataclass(frozen=True)
class Large:
    """A value too large to print."""

    make: Callable[[], Any]

    def made(self) -> Any:
        return self.make()


def made(value: Any) -> Any:
    """A value with every plan in it carried out."""
    if isinstance(value, Plan | Large):
        return value.made()
    if isinstance(value, list | tuple):
        return type(value)(map(made, value))
    if isinstance(value, dict):
        return {key: made(inner) for key, inner in value.items()}
    return SimpleNamespace(**made(vars(value))) if isinstance(value, SimpleNamespace) else value


TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
SIMPLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31, 2**63, 2**64, 2**70, -1, 0, 99, 100, 199, 600, 999]),
    st.sampled_from([Large(lambda: 10**5000), Large(lambda: "long" * 30_000)]),
    st.floats(),
    TEXTS,
    st.binary(max_size=20),
    st.sampled_from([Decimal("NaN"), 1j, object, len, ..., b"".join, np.float32(2), np.array([1, 2]), set()]),
)
METHODS_GIVEN = st.dictionaries(st.sampled_from(METHODS), SIMPLE, max_size=6)
OBJECTS = st.one_of(
    SIMPLE,
    st.builds(
        Plan,
        st.sampled_from(BASES),
        METHODS_GIVEN,
        st.sampled_from(FAULTS),
    ),
)
VALUES = st.recursive(
    OBJECTS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3), st.tuples(inner)
    ),
    max_leaves=6,
)
DIMENSIONS = st.lists(st.builds(SimpleNamespace, name=OBJECTS, value=OBJECTS), max_size=3)


def does(method: str, *strategies: st.SearchStrategy[Any], **named: st.SearchStrategy[Any]) -> Any:
    """A call of one of the context's methods, of its metrics' if the name begins so."""
    return st.tuples(st.just(method), st.tuples(*strategies), st.fixed_dictionaries(named))


CALLS = st.one_of(
    does("set_response_status", OBJECTS, OBJECTS, idx=st.integers(0, ROWS - 1)),
    does("set_all_response_status", OBJECTS, OBJECTS),
    does("set_response_header", st.integers(0, ROWS - 1), OBJECTS, OBJECTS),
    does("set_response_content_type", st.integers(0, ROWS - 1), OBJECTS),
    does("metrics.add_metric", OBJECTS, OBJECTS, OBJECTS, dimensions=DIMENSIONS, metric_type=OBJECTS),
    does("metrics.add_counter", OBJECTS, OBJECTS, dimensions=DIMENSIONS),
    does("metrics.add_time", OBJECTS, OBJECTS, metric_type=OBJECTS),
    does("metrics.add_error", OBJECTS, OBJECTS, dimensions=DIMENSIONS),
    does("metrics.record", OBJECTS, OBJECTS, OBJECTS, OBJECTS, st.lists(st.tuples(OBJECTS, OBJECTS))),
    does("cl_socket.sendall", SIMPLE),
    does("__setattr__", st.sampled_from(["request_processor", "request_ids"]), VALUES),
)
FAILURES = st.one_of(
    st.builds(Plan, st.just(Exception), METHODS_GIVEN, st.sampled_from(FAULTS)),
    st.builds(lambda fault: Large(lambda: fault("text")), st.sampled_from(FAULTS)),
    st.builds(lambda *said: Large(lambda: PredictionException(*made(said))), OBJECTS, OBJECTS),
)
ENDINGS = st.one_of(
    st.tuples(st.just("return"), st.lists(VALUES, min_size=ROWS, max_size=ROWS)),
    st.tuples(st.just("return"), VALUES),
    st.tuples(st.just("raise"), FAILURES),
)
"""How the handler ends."""


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    return Worker(tmp_path_factory.mktemp("model"), rows=ROWS)


@settings(max_examples=200, deadline=None)
@example(calls=[], ending=("raise", Plan(Exception, {"__len__": None}, KeyboardInterrupt)))
@given(calls=st.lists(CALLS, max_size=4), ending=ENDINGS)
def test_every_batch_is_answered(worker: Worker, calls: list[Any], ending: tuple[str, Any]) -> None:
    def act(data: Any, context: Any) -> Any:
        for method, values, named in calls:
            of: Any = context
            for part in method.split("."):
                of = getattr(of, part)
            of(*made(values), **made(named))
        how, value = ending
        if how == "raise":
            raise made(value)
        return made(value)

    worker.answer(act)
    answers = worker.answer(fine).answers
    assert [(answer.status, answer.body) for answer in answers] == [(200, b"fine")] * ROWS


def fine(data: Any, context: Any) -> Any:
    return ["fine"] * len(data)
