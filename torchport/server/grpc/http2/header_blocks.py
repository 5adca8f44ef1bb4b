"""The header blocks of one connection: put together, decoded, and what they mean.

blocks = HeaderBlocks()
block = blocks.begin(flags, number, payload)          # None: it continues in the next frame
head = blocks.head(block)
"""

from __future__ import annotations

from typing import Any

from hpack import Decoder, HPACKError, OversizedHeaderListError

from torchport.server.grpc.http2 import frames as h2
from torchport.server.grpc.http2.frame_reader import MAX_BLOCK
from torchport.server.grpc.http2.frames import ConnectionFault
from torchport.server.grpc.http2.head import Head, head_of

MAX_LIST_BYTES = 16 << 10
"""Maximum size of a decoded header list, as gRPC's own servers have it. A call with more is refused."""

_MAX_DECODED = 1 << 16
"""Size of a header list at which decoding ends, and the connection: a short block may stand for megabytes."""

_ENTRY_BYTES = 32
"""What an entry counts beside its name and value (RFC 7541, 4.1)."""

_KEPT_HEADS = 32
_KEPT_BLOCK = 512
"""Number, and bytes, of header blocks whose meaning is kept: clients send the same again and again."""


class HeadersTooLarge(Exception):
    """The list is larger than `MAX_LIST_BYTES`. The compression is intact."""


class HeaderBlocks:
    """The blocks, each of which must be decoded, in their order."""

    def __init__(self) -> None:
        self._decoder = Decoder(_MAX_DECODED)
        self._heads: dict[bytes, Head] = {}
        self._number = self.flags = 0
        """Stream and flags of the block that continues in the next frame."""
        self._block = bytearray()

    def begin(self, flags: int, number: int, payload: bytes) -> bytes | None:
        """The block of a frame of headers; None if it continues.

        Raises:
            ConnectionFault: the frame is invalid.
        """
        if not number & 1:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "a stream that no client has")
        at, end = 0, len(payload)
        if flags & h2.PADDED:
            at, end = 1, end - (payload[0] if payload else 0)
        if flags & h2.HAS_PRIORITY:
            at += 5
        if at > end:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "headers that are cut off")
        if flags & h2.END_HEADERS:
            return payload[at:end]
        self._number, self.flags, self._block = number, flags, bytearray(payload[at:end])
        return None

    def go_on(self, flags: int, number: int, payload: bytes) -> bytes | None:
        """The block that a frame of continuation ends; None if it continues again.

        Raises:
            ConnectionFault: the frame is invalid, or the block has no end.
        """
        if not self._number or number != self._number:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "nothing that could continue")
        self._block += payload
        ends = flags & h2.END_HEADERS
        if len(self._block) > MAX_BLOCK or not (payload or ends):
            raise ConnectionFault(h2.ENHANCE_YOUR_CALM, "headers without end")
        if not ends:
            return None
        block, self._number, self._block = bytes(self._block), 0, bytearray()
        return block

    def head(self, block: bytes) -> Head:
        """The head of a call.

        Raises:
            ConnectionFault: the block cannot be decoded.
            MalformedHead, HeadersTooLarge: the call cannot begin; the connection can go on.
        """
        head = self._heads.get(block)
        if head is not None:
            return head
        before = self._state()
        try:
            headers: list[Any] = list(self._decoder.decode(block, raw=True))
        except OversizedHeaderListError as err:
            raise ConnectionFault(h2.ENHANCE_YOUR_CALM, "headers without end") from err
        except HPACKError as err:
            raise ConnectionFault(h2.COMPRESSION_ERROR, str(err)) from err
        is_unchanged = self._state() == before
        if not is_unchanged:
            self._heads.clear()
        if sum(len(name) + len(value) + _ENTRY_BYTES for name, value in headers) > MAX_LIST_BYTES:
            raise HeadersTooLarge
        head = head_of(headers)
        if is_unchanged and len(self._heads) < _KEPT_HEADS and len(block) <= _KEPT_BLOCK:
            self._heads[block] = head
        return head

    def _state(self) -> object:
        """What the meaning of the next block depends on."""
        table = self._decoder.header_table
        return table.maxsize, tuple(table.dynamic_entries)
