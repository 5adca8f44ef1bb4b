"""The event loop runs while the parsing thread parses."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np

from torchport.server.http.parsing import in_parsing_thread, let_others_run

PIECES = 500
LIMIT_S = 0.05
ATTEMPTS = 3


def parse() -> bool:
    """As the numbers of a large tensor: NumPy gives Python's lock up within each piece."""
    values: list[Any] = [0.123] * 8192
    for _ in range(PIECES):
        assert np.isfinite(np.array(values, np.float32)).all()
        let_others_run()
    return True


async def longest_delay() -> float:
    """Seconds that the event loop was late at most, while a body was parsed."""
    parsing, longest = asyncio.ensure_future(in_parsing_thread(parse)), 0.0
    while not parsing.done():
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        longest = max(longest, time.perf_counter() - began)
    assert parsing.result()
    return longest


def test_the_loop_is_not_starved_by_arrays() -> None:
    assert min(asyncio.run(longest_delay()) for _ in range(ATTEMPTS)) < LIMIT_S


def test_nothing_sleeps_outside_the_parsing_thread(monkeypatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: 1 / 0)
    let_others_run()
