"""Registrations that hang hold no others up."""

import asyncio
import threading

import pytest

from torchport.server.dispatch.own_thread import MAX_THREADS, in_own_thread
from torchport.server.errors import ServiceUnavailable


def test_those_that_hang_hold_no_others_up_and_are_not_without_end():
    release = threading.Event()

    async def register():
        hanging = [asyncio.create_task(in_own_thread(release.wait)) for _ in range(MAX_THREADS - 1)]
        await asyncio.sleep(0)
        assert await in_own_thread(lambda: "registered") == "registered"
        hanging.append(asyncio.create_task(in_own_thread(release.wait)))
        await asyncio.sleep(0)
        with pytest.raises(ServiceUnavailable, match="try again later"):
            await in_own_thread(lambda: "one more")
        release.set()
        assert all(await asyncio.gather(*hanging))
        assert await in_own_thread(lambda: "again") == "again"

    asyncio.run(register())


def test_what_it_raises_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        asyncio.run(in_own_thread(lambda: 1 / 0))
