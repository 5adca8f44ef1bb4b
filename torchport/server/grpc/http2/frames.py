"""The frames of HTTP/2 (RFC 9113): their numbers, and those that the server writes.

frame(PING, ACK, 0, payload)
response_headers(7)                  # the headers of an answer on stream 7
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first."""

HEADER = struct.Struct(">HBBBL")
"""Length (its upper 16 bits, its lower 8), type, flags, stream."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = 5, 6, 7, 8, 9
ENHANCE_YOUR_CALM = 11

SETTING_MAX_STREAMS, SETTING_WINDOW, SETTING_MAX_FRAME, SETTING_MAX_HEADER_LIST = 3, 4, 5, 6

DEFAULT_WINDOW = 65_535
DEFAULT_MAX_FRAME = 16_384
LARGEST_MAX_FRAME = (1 << 24) - 1
MAX_WINDOW = (1 << 31) - 1
MAX_STREAM_ID = (1 << 31) - 1


class ConnectionFault(Exception):
    """The client breaks the protocol. The connection ends with GOAWAY and this `code`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame."""
    size = len(payload)
    return HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def data_header(size: int, stream: int) -> bytes:
    """The header of a frame of data, which others follow."""
    return HEADER.pack(size >> 8, size & 0xFF, DATA, 0, stream)


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """A frame of settings."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HL", key, value) for key, value in values))


def window_update(stream: int, size: int) -> bytes:
    """A frame that lets the client send so many bytes more; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def reset(stream: int, code: int) -> bytes:
    """A frame that ends a stream."""
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def goaway(last: int, code: int, reason: str = "") -> bytes:
    """A frame that ends the connection: no stream after `last` is answered."""
    return frame(GOAWAY, 0, 0, struct.pack(">LL", last, code) + reason.encode("ascii", "replace")[:200])


def _literal(name: bytes, value: bytes) -> bytes:
    """A header in HPACK that no table keeps."""
    return b"\x00" + _sized(name) + _sized(value)


def _sized(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes([size]) + text
    size -= 127
    length = bytearray(b"\x7f")
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    length.append(size)
    return bytes(length) + text


_STATUS_200 = b"\x88"
_RESPONSE = (
    _STATUS_200
    + _literal(b"content-type", b"application/grpc")
    + _literal(b"grpc-accept-encoding", b"identity,deflate,gzip")
)


def response_headers(stream: int) -> bytes:
    """The frame of headers before the first message of an answer."""
    return frame(HEADERS, END_HEADERS, stream, _RESPONSE)


@lru_cache(maxsize=64)
def _status(code: int) -> bytes:
    return _literal(b"grpc-status", b"%d" % code)


def trailers(
    stream: int, code: int, details: str, metadata: Iterable[tuple[str, str]], *, only: bool
) -> bytes:
    """The frame that ends an answer; `only` is whether nothing came before it."""
    block = (_RESPONSE if only else b"") + _status(code)
    if details:
        block += _literal(b"grpc-message", _percent_encoded(details))
    for name, value in metadata:
        block += _literal(name.encode("latin-1"), value.encode("latin-1", "replace"))
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, block)


def refusal(stream: int, status: int) -> bytes:
    """The frame that answers what is no gRPC call with an HTTP status."""
    block = _literal(b":status", b"%d" % status)
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, block)


def _percent_encoded(details: str) -> bytes:
    """A status message as gRPC sends it: printable ASCII stays, all else is in hexadecimal."""
    return b"".join(
        bytes([byte]) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in details.encode("utf-8", "replace")
    )
