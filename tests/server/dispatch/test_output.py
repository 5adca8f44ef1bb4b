"""What a process prints becomes lines of bounded length."""

from __future__ import annotations

import io
from itertools import islice

from torchport.server.dispatch.output import MAX_LINE, lines_of


class Endless(io.RawIOBase):
    """Output that has no line break, and no end."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        buffer[:] = b"x" * len(buffer)
        return len(buffer)


def test_lines_are_the_lines_that_were_printed() -> None:
    stream = io.BufferedReader(io.BytesIO(b"one\n\ntwo \xff\r\nlast"))  # type: ignore[arg-type]
    assert list(lines_of(stream)) == ["one", "", "two \ufffd", "last"]


def test_output_without_a_line_break_is_lines_too() -> None:
    stream = io.BufferedReader(Endless())
    assert [len(line) for line in islice(lines_of(stream), 3)] == [MAX_LINE] * 3
