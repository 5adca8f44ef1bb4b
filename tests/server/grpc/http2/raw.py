"""A client of HTTP/2 that sends whatever a test says, frame by frame."""

from __future__ import annotations

import socket
from typing import NamedTuple

from hpack import Decoder

from torchport.server.grpc.http2 import frames as h2

PATIENCE_S = 30.0

GREETING = h2.PREFACE + h2.settings([])


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """The error of a reset or of a goaway."""
        return int.from_bytes(self.payload[:4] if self.kind == h2.RST_STREAM else self.payload[4:8])


def literal(name: bytes, value: bytes) -> bytes:
    """A header that no table keeps."""
    return b"\x00" + text(name) + text(value)


def text(value: bytes) -> bytes:
    assert len(value) < 127
    return bytes([len(value)]) + value


def head(path: str, **more: str) -> bytes:
    """The header block of a call."""
    named = {name.replace("_", "-"): value for name, value in more.items()}
    fields = {":method": "POST", ":scheme": "http", ":path": path, "content-type": "application/grpc"} | named
    return b"".join(literal(name.encode(), value.encode()) for name, value in fields.items())


def message(data: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(data).to_bytes(4, "big") + data


class Raw:
    """One connection."""

    def __init__(self, port: int, greeting: bytes = GREETING) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        # Each frame goes at once: the server would acknowledge the one before it late.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b""
        self.decoder = Decoder()
        self.send(greeting)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *data: bytes) -> None:
        self.socket.sendall(b"".join(data))

    def call(self, number: int, path: str, data: bytes | None = None, **more: str) -> None:
        """Begin a call; with a message, all of it is sent."""
        self.send(h2.frame(h2.HEADERS, h2.END_HEADERS, number, head(path, **more)))
        if data is not None:
            self.data(number, message(data), ends=True)

    def data(self, number: int, data: bytes, *, ends: bool = False) -> None:
        pieces = [data[at : at + 16_384] for at in range(0, len(data), 16_384)] or [b""]
        for piece in pieces:
            flags = h2.END_STREAM if ends and piece is pieces[-1] else 0
            self.send(h2.frame(h2.DATA, flags, number, piece))

    def frame(self) -> Frame | None:
        """The next frame; None at the end of the connection."""
        header = self._read(9)
        if header is None:
            return None
        high, low, kind, flags, stream = h2.HEADER.unpack(header)
        payload = self._read(high << 8 | low)
        return None if payload is None else Frame(kind, flags, stream, payload)

    def _read(self, size: int) -> bytes | None:
        while len(self.rest) < size:
            try:
                more = self.socket.recv(1 << 16)
            except ConnectionResetError:
                more = b""
            if not more:
                return None
            self.rest += more
        found, self.rest = self.rest[:size], self.rest[size:]
        return found

    def until(self, *kinds: int, stream: int | None = None) -> Frame:
        """The next frame of one of these kinds."""
        while (found := self.frame()) is not None:
            if found.kind in kinds and stream in (None, found.stream):
                return found
        raise EOFError("the connection has ended")

    def status(self, number: int) -> dict[str, str]:
        """The trailers of a call."""
        while True:
            found = self.until(h2.HEADERS, stream=number)
            headers = {
                name.decode(): value.decode() for name, value in self.decoder.decode(found.payload, raw=True)
            }
            if found.flags & h2.END_STREAM:
                return headers

    def ends(self) -> int | None:
        """The error with which the server ends the connection; None if it says none."""
        code = None
        while (found := self.frame()) is not None:
            if found.kind == h2.GOAWAY:
                code = found.code
        return code
