"""Gathers the body of one request, counted in the memory of all bodies.

    body = IncomingBody(memory, max_size, refuse)
    body.add(b"...")                     # or else, of a body whose length is known:
    body.expect(room)                    # it is read into this memory
    body.filled(sock.recv_into(body.room))
    whole, held = body.take()

A large body of known length is read straight to where its model's workers find it, if there is room.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from torchport.server.http.body_memory import UNCOUNTED, BodyMemory, Held
from torchport.server.http.message import Body

COUNTED_AHEAD = 1 << 16
"""Bytes of a body that are counted at once: it may come in millions of chunks."""


class IncomingBody:
    """A body that arrives; `refuse(status)` ends that. `drop` makes it ready for the next one."""

    def __init__(self, memory: BodyMemory, max_size: int, refuse: Callable[[int], None]) -> None:
        self._memory, self._max_size, self._refuse = memory, max_size, refuse
        self.size = 0
        """Bytes that have come."""
        self.room: memoryview | None = None
        """Where the next bytes are to be read to; None: give them to `add`."""
        self._data: bytes | bytearray = b""
        self._whole: memoryview | None = None
        self._held: Held | None = None
        self._allowed = UNCOUNTED
        """Bytes up to which the body needs no other look at the memory of all."""
        self._since = 0.0

    def drop(self) -> None:
        """Forget what has come."""
        self.size, self._data, self._allowed = 0, b"", UNCOUNTED
        self.room = self._whole = None
        if self._held is not None:
            self._memory.uploads.discard(self)
            self._held = None

    def expect(self, room: memoryview) -> None:
        """Put the body into this memory, which has its length."""
        self.room = self._whole = room

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        if not self._counted(len(data)):
            return
        if self.room is not None:
            self.room[: len(data)] = data
            self.room = self.room[len(data) :]
        elif not self._data:
            self._data = data
        elif isinstance(self._data, bytearray):
            self._data += data
        else:
            self._data = bytearray(self._data) + data
        self.size += len(data)

    def filled(self, count: int) -> None:
        """Note that so many bytes have been read into the room."""
        if self.room is not None and self._counted(count):
            self.room = self.room[count:]
            self.size += count

    def take(self) -> tuple[Body, Held | None]:
        """The body, and what counts it as long as that lives."""
        body: Body
        if self._whole is not None:
            body = self._whole
        else:
            body = self._data if isinstance(self._data, bytes) else bytes(self._data)
        held = self._held
        self.drop()
        return body, held

    def _counted(self, more: int) -> bool:
        """Whether so many bytes more may come; they are counted then, and some ahead."""
        size = self.size + more
        if size > self._max_size:
            self._refuse(413)
            return False
        if size > self._allowed and not self._has_room(size):
            self._refuse(503)
            return False
        return True

    def _has_room(self, size: int) -> bool:
        if self._held is None:
            self._held, self._since = self._memory.hold(0), time.monotonic()
            self._memory.uploads.add(self)
            self._allowed = 0
        more = max(size - self._allowed, COUNTED_AHEAD)
        self._allowed += more
        # It may be this one that has to give way; then it is counted no more.
        return self._held is not None and self._memory.grow(self._held, more) and self._held is not None

    # What the memory of all asks.

    def occupation(self) -> float:
        """Bytes of the incomplete body, times the seconds since it began."""
        return self.size * (time.monotonic() - self._since)

    def give_way(self) -> None:
        """Refuse the incomplete body, because all bodies take too much memory."""
        self._refuse(503)
