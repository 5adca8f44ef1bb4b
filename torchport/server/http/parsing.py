"""Parses large bodies in a thread, so that the event loop is not held up.

    if len(body) > INLINE_BYTES:
        fields = await in_parsing_thread(fields_of, body, content_type)

What runs there must hold Python's lock for a few milliseconds at a time at most: the event loop waits for
it. A single call of a C function on a whole body may take longer, so it works on pieces, and calls
`let_others_run` after each.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

INLINE_BYTES = 1 << 14
"""Maximum bytes that are parsed on the event loop: under 2 ms for the most expensive body.

A way to the thread and back costs some 0.1 ms, which most requests must not pay.
"""

SWITCH_S = 0.001
"""Seconds after which Python's lock changes hands while a body is parsed; Python's default is 0.005."""

PAUSE_S = 5e-5
"""Seconds that the parsing thread sleeps to hand Python's lock over."""

_Parsed = TypeVar("_Parsed")
_this_thread = threading.local()


def _mark() -> None:
    _this_thread.is_parsing = True


_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parsing", initializer=_mark)
"""One thread: a second one would only compete with the event loop for Python's lock."""


def let_others_run() -> None:
    """Hand Python's lock to a thread that waits for it. Outside the parsing thread: do nothing.

    A thread that waits gets the lock within the switch interval only from one that keeps it for as long.
    NumPy gives it up and takes it back several times in an interval: the event loop is woken each time,
    comes too late, and begins to wait anew. It was held up for 100 ms that way.
    """
    if getattr(_this_thread, "is_parsing", False):
        time.sleep(PAUSE_S)


async def in_parsing_thread(parse: Callable[..., _Parsed], *arguments: object) -> _Parsed:
    """The result of `parse(*arguments)`, which runs after all that came earlier."""
    if sys.getswitchinterval() > SWITCH_S:
        sys.setswitchinterval(SWITCH_S)
    return await asyncio.get_running_loop().run_in_executor(_thread, parse, *arguments)
