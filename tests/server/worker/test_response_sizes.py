"""Answers over `max_response_size` stay in the worker."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from tests.server.worker.in_process import Worker
from torchport.server.wire import Partial
from torchport.server.worker.metrics import MAX_SAMPLES

LIMIT = 1000


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path, rows=2, max_response_size=LIMIT)


@pytest.mark.parametrize(
    "large", [b"x" * (LIMIT + 1), "é" * LIMIT, ["x" * LIMIT]], ids=["bytes", "text", "json"]
)
def test_an_answer_that_is_too_large_is_an_error_for_its_row_alone(worker: Worker, large: Any) -> None:
    answers = worker.answer(lambda data, context: [large, b"x" * LIMIT]).answers
    assert [answer.status for answer in answers] == [500, 200]
    assert b"max_response_size is 1000" in answers[0].body
    assert len(answers[0].body) < 200


def test_a_piece_of_a_stream_that_is_too_large_is_an_error_of_the_handlers(worker: Worker) -> None:
    def act(data: Any, context: Any) -> Any:
        context.cl_socket.sendall(response(b"id0", b"x" * LIMIT))
        context.cl_socket.sendall(response(b"id0", b"x" * (LIMIT + 1)))
        return ["", ""]

    answers = worker.answer(act).answers
    assert [answer.status for answer in answers] == [503, 503]
    assert [type(report) for report in worker.reports[:-1]] == [Partial]


def test_values_of_metrics_are_bounded_and_the_others_counted(worker: Worker) -> None:
    def act(data: Any, context: Any) -> Any:
        for _ in range(MAX_SAMPLES + 5):
            context.metrics.add_counter("Many", 1)
        return ["", ""]

    *samples, dropped = worker.answer(act).samples
    assert len(samples) == MAX_SAMPLES
    # Five of the handler's, and the time that it took.
    assert (dropped.kind, dropped.value) == ("dropped", 6.0)
    assert len(worker.answer(lambda data, context: ["", ""]).samples) == 1


def response(request_id: bytes, body: bytes) -> bytes:
    """One piece in TorchServe's format."""

    def chunk(value: bytes) -> bytes:
        return struct.pack("!i", len(value)) + value

    row = (
        chunk(request_id) + chunk(b"text/plain") + struct.pack("!i", 200) + chunk(b"") + struct.pack("!i", 0)
    )
    return struct.pack("!i", 200) + chunk(b"") + row + chunk(body) + struct.pack("!i", -1)
