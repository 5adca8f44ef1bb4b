"""A process's output as lines of bounded length.

    for line in lines_of(process.stdout):
        logger.info("%s", line)

What is printed without a line break is a line once it has `MAX_LINE` bytes: no process can fill the memory
of who reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

MAX_LINE = 8 << 10
"""Maximum length of a line in bytes; a longer one becomes several."""


def lines_of(stream: IO[bytes]) -> Iterator[str]:
    """The lines of a stream, until it ends."""
    while raw := stream.readline(MAX_LINE):
        yield raw.decode("utf-8", "replace").rstrip()
