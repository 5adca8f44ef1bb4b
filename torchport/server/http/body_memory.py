"""The memory that all requests' bodies may take together.

    memory = BodyMemory(1 << 30)
    held = memory.hold(len(body))        # None: there is no room; given back when nothing refers to it

Each body is bounded by `max_request_size`, and a server has thousands of connections.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

UNCOUNTED = 1 << 14
"""Maximum bytes of a body that is not counted: small requests must not pay for the count."""


class Upload(Protocol):
    """A body that has not arrived whole."""

    def occupation(self) -> float:
        """Bytes that it takes, times the seconds since it began."""

    def give_way(self) -> None:
        """Refuse the rest, and drop what is there."""


class Held:
    """Bytes that are counted until the end of its `with`, or as long as this object lives."""

    __slots__ = ("_freed", "size")

    def __init__(self, freed: deque[int], size: int) -> None:
        self._freed, self.size = freed, size

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Count these bytes no longer."""
        # In whatever thread the last reference goes: appending is safe in all.
        self._freed.append(self.size)
        self.size = 0


class BodyMemory:
    """Counts the bytes of bodies: those that arrive, those that wait, those that are being answered."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._freed: deque[int] = deque()
        self.uploads: set[Upload] = set()
        """Bodies that are arriving; one of them gives way if there is no room."""

    @property
    def used(self) -> int:
        while self._freed:
            self._used -= self._freed.popleft()
        return self._used

    def hold(self, size: int) -> Held | None:
        """Count so many bytes; None if they are too many."""
        held = Held(self._freed, 0)
        return held if self.grow(held, size) else None

    def grow(self, held: Held, size: int) -> bool:
        """Count more bytes with those; whether there is room.

        If there is none, the upload gives way that has taken most memory for the longest. A client that
        sends slowly, to keep the memory from others, is the first.
        """
        if self.used + size > self.limit:
            if self.uploads:
                max(self.uploads, key=lambda upload: upload.occupation()).give_way()
            if self.used + size > self.limit:
                return False
        held.size += size
        self._used += size
        return True
