"""Parses large bodies in a thread, so that the event loop is not held up.

    if len(body) > INLINE_BYTES:
        fields = await in_parsing_thread(fields_of, body, content_type)

What runs there must hold Python's lock for a few milliseconds at a time at most: the event loop waits for
it. A loop in Python gives it up by itself; a single call of a C function on a whole body may not.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

INLINE_BYTES = 1 << 14
"""Maximum bytes that are parsed on the event loop: under 2 ms for the most expensive body.

A way to the thread and back costs some 0.1 ms, which most requests must not pay.
"""

SWITCH_S = 0.001
"""Seconds after which Python's lock changes hands while a body is parsed; Python's default is 0.005."""

_Parsed = TypeVar("_Parsed")

_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parsing")
"""One thread: a second one would only compete with the event loop for Python's lock."""


async def in_parsing_thread(parse: Callable[..., _Parsed], *arguments: object) -> _Parsed:
    """The result of `parse(*arguments)`, which runs after all that came earlier."""
    if sys.getswitchinterval() > SWITCH_S:
        sys.setswitchinterval(SWITCH_S)
    return await asyncio.get_running_loop().run_in_executor(_thread, parse, *arguments)
