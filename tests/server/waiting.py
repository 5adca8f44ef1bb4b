"""Waiting for what must happen soon, without a guess how soon.

    wait_until(lambda: "answering what was taken" in server.log())

Returns as soon as it is so.
"""

import time
from collections.abc import Callable

PATIENCE_S = 180.0
"""How long anything is waited for, an answer too; none takes so long unless something is broken.

A shadow computes only when a core is idle: while other tests keep every core busy, it stands still.
"""


def comes_true(condition: Callable[[], object], seconds: float = PATIENCE_S) -> bool:
    """Whether the condition holds, now or soon."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def lines_with(log: Callable[[], str], text: str) -> list[str]:
    """Lines of a log with a text, as soon as there are any: an answer may come before its line."""
    found: list[str] = []
    wait_until(lambda: found.extend(line for line in log().splitlines() if text in line) or found)
    return found


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    assert comes_true(condition, seconds), "waited in vain"
