"""Memory that the front shares with the workers of one model version: large bodies lie in it.

    arena = Arena.create()               # None where the system has no such memory
    body = arena.lease(600_000)          # a memoryview to read a body into; None: there is no room
    arena.place_of(body[1024:])          # where the workers find these bytes

Each body has a slot. A slot is free, or belongs to whoever refers to its memory: the connection that reads
into it, then the request that waits, then the batch of a worker until that has answered or its process has
ended, or else the worker whose handler keeps an array of it. It is free again when nobody refers to it, and
not before; so no reader of a slot ever sees another request's bytes. Workers map it read-only. What has been
free for `KEEP_S` seconds is given back to the system.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import mmap
import os
import time
from collections import deque

from torchport.server.dispatch.anonymous_memory import anonymous_memory
from torchport.server.wire import LARGE, Place

SIZE = 1 << 30
"""Bytes of one arena. They are addresses: memory is taken by what is written."""

ALIGNMENT = 64
"""Bytes to whose multiples tensors are aligned, for vector instructions."""

KEEP_S = 5.0
"""Seconds that the memory of a free slot is kept for the next body."""

TIDY_EVERY_S = 1.0


class _Lease:
    """Gives the slot back when nothing refers to it any more."""

    __slots__ = ("arena", "slot")

    def __init__(self, arena: Arena, slot: tuple[int, int]) -> None:
        self.arena, self.slot = arena, slot

    def __del__(self) -> None:
        # In whatever thread the last reference goes: appending is safe in all.
        self.arena.returned.append(self.slot)


class Arena:
    """The shared memory of one model version, in slots of powers of two.

    Everything but the end of a lease happens on the front's event loop.
    """

    def __init__(self, file: int, memory: mmap.mmap) -> None:
        self.file, self.size = file, len(memory)
        self._memory = memory
        self.returned: deque[tuple[int, int]] = deque()
        self._free: dict[int, list[int]] = {}
        self._unused_since: dict[tuple[int, int], float] = {}
        """Free slots whose memory is still taken, by the time at which they were found to be free."""
        self._end = 0
        self._leased = 0
        self._tidying: asyncio.TimerHandle | None = None

    @classmethod
    def create(cls, size: int = SIZE) -> Arena | None:
        """A new arena; None where the system has no such memory, or limits this process's addresses."""
        found = anonymous_memory("torchport-bodies", size)
        return None if found is None else cls(*found)

    @property
    def in_use(self) -> int:
        """Number of slots that somebody refers to."""
        self._take_back()
        return self._leased

    def lease(self, size: int) -> memoryview | None:
        """Memory for so many bytes, aligned to a page, with whatever was in it; None if there is no room."""
        self._take_back()
        length = max(LARGE, 1 << (size - 1).bit_length())
        free = self._free.get(length)
        if free:
            start = free.pop()
            self._unused_since.pop((start, length), None)
        else:
            if self._end + length > self.size and not self._leased:
                self._begin_anew()
            if self._end + length > self.size or self.file < 0:
                return None
            start, self._end = self._end, self._end + length
        self._leased += 1
        if self._tidying is None:
            self._tidying = asyncio.get_running_loop().call_later(TIDY_EVERY_S, self._tidy)
        # Not before there is a body: a server's first answer would wait for numpy.
        from torchport.server.dispatch.leased import leased

        return leased(self._memory, start, size, _Lease(self, (start, length)))

    def copied(self, data: bytes | bytearray | memoryview) -> memoryview | None:
        """A copy of the data in a slot; None if there is no room."""
        found = self.lease(len(data))
        if found is not None:
            found[:] = data
        return found

    def place_of(self, data: object) -> Place | None:
        """Where workers find data that lie in this arena; None for others."""
        if not isinstance(data, memoryview):
            return None
        from torchport.server.dispatch.leased import address_of, lease_of

        lease = lease_of(data)
        if not isinstance(lease, _Lease) or lease.arena is not self:
            return None
        return Place(address_of(data) - address_of(self._memory), len(data))

    def close(self) -> None:
        """Lease no more. The memory goes with the last reference to it."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1
        if self._tidying is not None:
            self._tidying.cancel()

    def _take_back(self) -> None:
        while self.returned:
            start, length = slot = self.returned.popleft()
            self._leased -= 1
            self._free.setdefault(length, []).append(start)
            self._unused_since[slot] = time.monotonic()

    def _begin_anew(self) -> None:
        """Forget how the memory was divided, which nobody uses: other lengths may be wanted now."""
        self._memory.madvise(mmap.MADV_REMOVE, 0, self._end)
        self._free.clear()
        self._unused_since.clear()
        self._end = 0

    def _tidy(self) -> None:
        """Give back the memory of slots that nobody has used for some time."""
        self._take_back()
        latest = time.monotonic() - KEEP_S
        for slot, since in list(self._unused_since.items()):
            if since <= latest:
                del self._unused_since[slot]
                self._memory.madvise(mmap.MADV_REMOVE, *slot)
        self._tidying = None
        if self._leased or self._unused_since:
            self._tidying = asyncio.get_running_loop().call_later(TIDY_EVERY_S, self._tidy)
        else:
            asyncio.get_running_loop().run_in_executor(None, _trim_heap)


def _trim_heap() -> None:
    """Give free memory of the heap back to the system: a burst of large bodies leaves holes all over it.

    Only glibc's allocator has to be asked.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
