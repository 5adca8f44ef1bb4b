"""A report that the front would not read is changed until it does; the others are sent as they are."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from torchport.server.wire import (
    HEADER,
    MAX_HEADERS,
    MAX_MESSAGE,
    Answer,
    Answered,
    LoadFailed,
    decode_report,
    encode_frame,
)
from torchport.server.worker.sanitizing import safe_frame


def read(frame: bytearray) -> Any:
    return decode_report(frame[HEADER.size :])


def answered(answer: Answer) -> Answered:
    return Answered(1, 1, [answer], [], 0)


@pytest.mark.parametrize("status", [-1, 100, 199, 600, 2**40])
def test_the_front_takes_no_status_outside_200_to_599(status: int) -> None:
    with pytest.raises(msgspec.ValidationError):
        read(encode_frame(answered(Answer(status, b"x"))))
    (answer,) = read(safe_frame(answered(Answer(status, b"x")))).answers
    assert (answer.status, answer.body) == (500, b"x")


def test_what_is_as_it_must_be_is_not_changed() -> None:
    answer = Answer(404, b"\xff", "text/plain", [("x-a", "ü")], "Gone", "Kind")
    assert read(safe_frame(answered(answer))).answers == [answer]


def test_more_headers_than_a_client_reads_are_left_out() -> None:
    headers = [(f"x-{number}", "y") for number in range(MAX_HEADERS + 1)]
    (answer,) = read(safe_frame(answered(Answer(200, b"", headers=headers)))).answers
    assert answer.headers == headers[:-1]


def test_a_long_traceback_keeps_its_end() -> None:
    failed = read(safe_frame(LoadFailed(1, "x\ud800", "a" * MAX_MESSAGE + "the end")))
    assert (failed.reason, len(failed.traceback)) == ("x?", MAX_MESSAGE)
    assert failed.traceback.endswith("the end")
