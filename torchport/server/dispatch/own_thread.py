"""Runs what may hang in a thread of its own, so that it holds up nothing else.

    unpacked = await in_own_thread(lambda: unpack("linear-1.0.mar", ...))

A pool has a few threads: as many registrations that hang, on a disk or in pip, would stop all others.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from torchport.server.errors import ServiceUnavailable

MAX_THREADS = 64
"""Maximum number of such threads; one more is refused, because as many must be hanging."""

_Result = TypeVar("_Result")
_running = threading.BoundedSemaphore(MAX_THREADS)


async def in_own_thread(function: Callable[[], _Result]) -> _Result:
    """The result of the function, or its exception.

    The thread does not keep the process from ending.

    Raises:
        ServiceUnavailable: `MAX_THREADS` run already.
    """
    if not _running.acquire(blocking=False):
        raise ServiceUnavailable(f"{MAX_THREADS} archives are being read already: try again later")
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def tell(result: _Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as err:
            error = err
        finally:
            _running.release()
        with contextlib.suppress(RuntimeError):  # The loop is closed: the server is ending.
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name="archive", daemon=True).start()
    return await future
