"""What a connection of HTTP/2 writes: frames, within what the client takes."""

from __future__ import annotations

from collections.abc import Sequence

from torchport.server.grpc.http2 import frames as h2
from torchport.server.grpc.http2.answer import Piece, SendingHalf
from torchport.server.grpc.http2.frame_reader import FrameReader
from torchport.server.settings.settings import ServerSettings

_MAX_UNSENT = 1 << 20
"""Maximum bytes of frames beside answers that wait for a client which does not read."""

BUFFERED = 1 << 19
"""Bytes of answers that wait in the transport; the rest waits in the streams."""

_JOINED = 1 << 14
"""Bytes of answers that are joined before they are written."""


class FrameWriter(FrameReader):
    """The writing half of a connection, on top of the reading one."""

    def __init__(self, buffer: memoryview, settings: ServerSettings) -> None:
        super().__init__(buffer)
        self.settings = settings
        self.waiting: dict[int, SendingHalf] = {}
        """Streams whose answer waits for the client."""
        self.window_out = self.initial_window_out = h2.DEFAULT_WINDOW
        self.max_frame_out = h2.DEFAULT_MAX_FRAME
        self.is_paused = False
        """Whether the transport takes no more of answers."""
        self._may_flush = False
        """Whether the client takes more than before."""
        self._unsent = self._written = 0
        """Bytes of frames beside answers since the transport took no more; bytes of all frames."""
        self._unread_since: float | None = None

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self._unsent = 0
        self.flush()

    def worked_off(self) -> None:
        if self._may_flush:
            self._may_flush = False
            self.flush()

    def write(self, data: bytes) -> None:
        """Write frames that are no part of an answer."""
        if self._closing:
            return
        self._written += len(data)
        self._transport.write(data)
        if self.is_paused:
            self._unsent += len(data)
            if self._unsent > _MAX_UNSENT:
                self._closing = True
                self._transport.abort()

    def write_all(self, pieces: Sequence[Piece]) -> None:
        """Write frames of an answer."""
        if self._closing:
            return
        size = sum(map(len, pieces))
        self._written += size
        if size <= _JOINED:
            self._transport.write(b"".join(pieces))
        else:
            self._transport.writelines(pieces)

    def flush(self) -> None:
        """Send of the answers that wait what the client takes, a part of each in turn."""
        while self.waiting and not self.is_paused and self.window_out > 0:
            # Each has its turn, whatever the one before it could send.
            if not sum(stream.pump() for stream in list(self.waiting.values())):
                return

    def leaves_answers(self, now: float) -> bool:
        """Whether the client reads slower than bodies must be sent."""
        unsent = self._transport.get_write_buffer_size()
        if not unsent:
            self._unread_since = None
            return False
        if self._unread_since is None:
            self._unread_since, self._written = now, unsent
        taken = self._written - unsent
        allowed = self.settings.body_timeout + taken / self.settings.min_body_rate
        return now - self._unread_since > allowed
