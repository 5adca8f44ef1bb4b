"""`python bench/idle_connections.py HOST PORT COUNT`: connections that have asked once and are kept.

Says `ready` when all are there, and closes them when its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys

AT_ONCE = 50


async def main(host: str, port: int, count: int) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def connect() -> asyncio.StreamWriter:
        async with gate:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"GET /ping HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"/ping is answered with {head[:80]!r}")
            return writer

    writers = await asyncio.gather(*(connect() for _ in range(count)))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for writer in writers:
        writer.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
