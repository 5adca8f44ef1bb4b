"""A connection of the tests' own, which sends what no client library would.

    with Wire(server.urls["inference"]) as raw:
        assert raw.send(b"GET /ping HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n").answer().status == 200

Answers are read as HTTP says; one that it does not allow fails the test.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.server.waiting import PATIENCE_S


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """One connection of our own."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self.socket = socket.create_connection((where.hostname, where.port), timeout=PATIENCE_S)
        self._buffer = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> Wire:
        self.socket.sendall(data)
        return self

    def try_to_send(self, data: bytes) -> None:
        """Send what the server may not want to have to its end."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def _more(self) -> bool:
        try:
            got = self.socket.recv(1 << 18)
        except ConnectionError:
            return False
        self._buffer += got
        return bool(got)

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            assert self._more(), f"the connection ended in the middle of an answer: {self._buffer[:200]!r}"
        found, _, self._buffer = self._buffer.partition(mark)
        return found

    def _exactly(self, count: int) -> bytes:
        pieces, have = [self._buffer], len(self._buffer)
        while have < count:
            self._buffer = b""
            assert self._more(), "the connection ended in the middle of a body"
            pieces.append(self._buffer)
            have += len(self._buffer)
        whole = b"".join(pieces)
        self._buffer = whole[count:]
        return whole[:count]

    def answer(self, method: str = "GET") -> Answer:
        """The next answer, read as HTTP says."""
        first, *lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        version, status, *_ = first.split(" ")
        assert version == "HTTP/1.1", first
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            assert name not in headers or name == "x-twice", f"{name} comes twice"
            headers[name] = value
        body = b""
        if int(status) in (204, 304) or int(status) < 200 or method == "HEAD":
            pass
        elif "content-length" in headers:
            body = self._exactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(self._until(b"\r\n"), 16):
                body += self._exactly(size)
                assert self._exactly(2) == b"\r\n"
            assert self._exactly(2) == b"\r\n"
        else:
            while self._more():
                pass
            body, self._buffer = self._buffer, b""
        return Answer(int(status), headers, body)

    def has_ended(self) -> bool:
        """Whether the server closes the connection, with nothing more to say."""
        while not self._buffer:
            if not self._more():
                return True
        return False
