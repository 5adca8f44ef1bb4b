"""An HTTP client of the run's own: it sees every byte, and when a connection ends.

    async with await HttpConnection.open(url) as connection:
        answer = await connection.ask("POST", "/predictions/echo", b"{}", JSON)

A client library would ask again by itself, and hide what was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

PATIENCE_S = 60.0
"""Seconds after which a request without an answer counts as lost."""


@dataclass(frozen=True)
class Answer:
    """An answer by HTTP; one by gRPC is put into this form too."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        """Whether the server takes no more requests on this connection."""
        return self.headers.get("connection") == "close"


class Cut(Exception):
    """A connection that ended, or fell silent, before the whole answer was there.

    `waited_s` is the time since the request had been sent.
    """

    def __init__(self, reason: str, waited_s: float) -> None:
        super().__init__(f"{reason}, {waited_s:.2f} s after it was sent")
        self.waited_s = waited_s


class HttpConnection:
    """One connection, with one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.is_open = True

    @classmethod
    async def open(cls, url: str) -> HttpConnection:
        """Connect.

        Raises:
            OSError: nothing listens there.
        """
        where = urlsplit(url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        return cls(reader, writer)

    async def __aenter__(self) -> HttpConnection:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.abandon()

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        pieces: int = 1,
        pause_s: float = 0.0,
    ) -> Answer:
        """Send a request and read its answer.

        Args:
            pieces: the number of parts in which the body is sent, a twentieth of a second apart.
            pause_s: seconds for which the answer is left unread.

        Raises:
            Cut: the connection ended, or there was no answer within `PATIENCE_S`.
        """
        step = max(1, -(-len(body) // pieces))
        parts = [body[at : at + step] for at in range(0, len(body), step)]
        try:
            await self.send(request_head(method, path, {"content-length": str(len(body)), **(headers or {})}))
            for number, part in enumerate(parts):
                await asyncio.sleep(0.05 if number else 0)
                await self.send(part)
        except OSError as err:
            self.abandon()
            raise Cut(f"the connection broke: {err!r}", 0.0) from err
        await asyncio.sleep(pause_s)
        return await self.answer()

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> Answer:
        """Read the next answer.

        Raises:
            Cut: as `ask` says.
        """
        sent = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S):
                found = await self._read_answer()
        except TimeoutError as err:
            self.abandon()
            raise Cut("no answer", time.monotonic() - sent) from err
        except (OSError, EOFError) as err:
            self.abandon()
            raise Cut(f"the connection ended: {err!r}", time.monotonic() - sent) from err
        if found.closes:
            self.abandon()
        return found

    async def _read_answer(self) -> Answer:
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(first.split()[1]), headers, body)

    async def close(self) -> bytes:
        """End the connection; what the server has sent beyond its answers, which must be nothing."""
        self.is_open = False
        left = b""
        with contextlib.suppress(OSError, TimeoutError):
            self._writer.write_eof()
            async with asyncio.timeout(PATIENCE_S):
                left = await self._reader.read()
        self._writer.close()
        return left

    def abandon(self) -> None:
        """Leave at once."""
        self.is_open = False
        self._writer.close()

    def reset(self) -> None:
        """Leave at once, and rudely."""
        self.is_open = False
        self._writer.transport.abort()


def request_head(method: str, path: str, headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"host": "localhost", **headers}.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()
