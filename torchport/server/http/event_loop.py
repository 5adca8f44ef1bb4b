"""The event loop of a server and of its load tests: uvloop's if it is installed.

with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
    runner.run(main())
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The factory of uvloop's event loops; None for asyncio's own."""
    try:
        import uvloop
    except ImportError:  # Windows has none.
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
