"""Header compression of HTTP/2 (HPACK, RFC 7541): the decoder.

    decoder = HeaderDecoder()
    decoder.decode(block)                # [(b":method", b"POST"), (b":path", b"/a.Service/Method"), ...]

Answers are sent without compression of their own: their few headers are literals that are made once.
"""

from __future__ import annotations

from collections import deque

from torchport.server.grpc.http2.huffman import InvalidCode, decode_huffman

TABLE_BYTES = 4096
"""Maximum size of the dynamic table, which is the protocol's default: no other was announced."""

MAX_LIST_BYTES = 16 << 10
"""Maximum size of a decoded header list, as gRPC's own servers have it."""

_ENTRY_BYTES = 32
"""What an entry counts beside its name and value (RFC 7541, 4.1)."""

_MAX_INTEGER_BYTES = 4

_STATIC = (
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    *((b":status", status) for status in (b"200", b"204", b"206", b"304", b"400", b"404", b"500")),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    *(
        (name, b"")
        for name in b"""
        accept-language accept-ranges accept access-control-allow-origin age allow authorization
        cache-control content-disposition content-encoding content-language content-length content-location
        content-range content-type cookie date etag expect expires from host if-match if-modified-since
        if-none-match if-range if-unmodified-since last-modified link location max-forwards
        proxy-authenticate proxy-authorization range referer refresh retry-after server set-cookie
        strict-transport-security transfer-encoding user-agent vary via www-authenticate
        """.split()
    ),
)

Headers = list[tuple[bytes, bytes]]


class CompressionError(Exception):
    """The block cannot be decoded: the connection's compression is lost, and the connection with it."""


class HeadersTooLarge(Exception):
    """The list is larger than `MAX_LIST_BYTES`. The compression is intact."""


class HeaderDecoder:
    """Decodes the header blocks of one connection, each once and in their order."""

    def __init__(self) -> None:
        self._table: deque[tuple[bytes, bytes]] = deque()
        self._size, self._limit = 0, TABLE_BYTES
        self.changes = 0
        """Number of changes of the table. A block means the same again as long as there was none."""

    def decode(self, block: bytes) -> Headers:
        """The headers of a block.

        Raises:
            CompressionError: the block is invalid.
            HeadersTooLarge: the headers take too many bytes.
        """
        headers: Headers = []
        at, end, size = 0, len(block), 0
        while at < end:
            byte = block[at]
            if byte & 0x80:
                index, at = _integer(block, at, 0x7F)
                header = self._entry(index)
            elif byte & 0xE0 == 0x20:
                if headers:
                    raise CompressionError("a change of the table's size after a header")
                limit, at = _integer(block, at, 0x1F)
                self._resize(limit)
                continue
            else:
                is_kept = bool(byte & 0x40)
                index, at = _integer(block, at, 0x3F if is_kept else 0x0F)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = _text(block, at)
                value, at = _text(block, at)
                header = (name, value)
                if is_kept:
                    self._keep(header)
            size += len(header[0]) + len(header[1]) + _ENTRY_BYTES
            # The table goes on being kept: the next block needs it.
            if size <= MAX_LIST_BYTES:
                headers.append(header)
        if size > MAX_LIST_BYTES:
            raise HeadersTooLarge
        return headers

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        index -= len(_STATIC) + 1
        if not 0 <= index < len(self._table):
            raise CompressionError("an entry that the table has not")
        return self._table[index]

    def _keep(self, header: tuple[bytes, bytes]) -> None:
        self.changes += 1
        self._table.appendleft(header)
        self._size += len(header[0]) + len(header[1]) + _ENTRY_BYTES
        self._evict()

    def _resize(self, limit: int) -> None:
        if limit > TABLE_BYTES:
            raise CompressionError("a larger table than was announced")
        self.changes += 1
        self._limit = limit
        self._evict()

    def _evict(self) -> None:
        while self._size > self._limit:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + _ENTRY_BYTES


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """A number whose first bits are the masked ones, and where the next byte is."""
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    for shift in range(0, 7 * _MAX_INTEGER_BYTES, 7):
        if at == len(block):
            break
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise CompressionError("a number that is cut off, or too large")


def _text(block: bytes, at: int) -> tuple[bytes, int]:
    """A name or a value, and where the next byte is."""
    if at == len(block):
        raise CompressionError("a header that is cut off")
    is_coded = bool(block[at] & 0x80)
    size, at = _integer(block, at, 0x7F)
    end = at + size
    if end > len(block):
        raise CompressionError("a header that is cut off")
    text = block[at:end]
    if is_coded:
        try:
            text = decode_huffman(text)
        except InvalidCode as err:
            raise CompressionError(str(err)) from err
    return text, end
