"""Many connections at once, each with one request after another, and a record of every answer."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    sent: Any
    seconds: float


@dataclass
class Load:
    """`bodies(connection, number)` makes each request's body; what it returns is kept as `Answer.sent`."""

    url: str
    path: str
    connections: int
    bodies: Callable[[int, int], Any]
    headers: dict[str, str] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    async def run(self, *, seconds: float | None = None, requests: int | None = None) -> None:
        """Ask for so long, or so often on each connection."""
        stop = asyncio.Event()
        tasks = [asyncio.create_task(self._connection(n, requests, stop)) for n in range(self.connections)]
        if seconds is not None:
            await asyncio.sleep(seconds)
            stop.set()
        await asyncio.gather(*tasks)

    async def _connection(self, number: int, requests: int | None, stop: asyncio.Event) -> None:
        parts = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        count = 0
        try:
            while not stop.is_set() and (requests is None or count < requests):
                sent = self.bodies(number, count)
                self.answers.append(await self._ask(reader, writer, sent))
                count += 1
        except (OSError, EOFError, ValueError) as err:
            self.errors.append(f"connection {number}, request {count}: {err!r}")
        finally:
            writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: Any) -> Answer:
        body = json.dumps(sent).encode()
        lines = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(body))}
        head = "".join(f"{k}: {v}\r\n" for k, v in (lines | self.headers).items())
        started = time.perf_counter()
        writer.write(f"POST {self.path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        head_bytes = await reader.readuntil(b"\r\n\r\n")
        status_line, *rest = head_bytes.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in rest if ": " in line)
        content = await reader.readexactly(int(headers["content-length"]))
        return Answer(int(status_line.split()[1]), headers, content, sent, time.perf_counter() - started)
