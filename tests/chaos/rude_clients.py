"""Clients that misbehave: hostile bodies, half requests, slow readers, clients that leave.

    client = RudeClient(server, ledger, random.Random("7/rude"))
    await client.run(stop)

What they send must be refused with a status of 4xx, or answered as ever; it must not cost others anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from random import Random

import grpc.aio

from tests.chaos.clients import JSON, GrpcClient, RestClient, answer_of, payload
from tests.chaos.http_connection import Answer, Cut, HttpConnection, request_head
from tests.chaos.ledger import Asked, Ledger
from tests.chaos.models import ECHO, FAILING, LEFT, TARGET, TENSORS
from tests.server.grpc_client import INFERENCE, prediction
from torchport.targets.torchport_serve import ServerProcess

MAX_REQUEST_SIZE = 6_553_500
"""The server's bound on bodies, in bytes."""

BAD_FRAMING = (
    b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"content-length: -1\r\n\r\n",
    b"content-length: 1\r\ncontent-length: 2\r\n\r\nab",
    b"transfer-encoding: chunked\r\n\r\nfish\r\n",
    b"transfer-encoding: gzip, chunked\r\n\r\n",
    b"content-length : 3\r\n\r\nabc",
    b"a name: value\r\n\r\n",
    b"\0: value\r\n\r\n",
)
"""Ends of heads, and bodies, about whose extent two readers could disagree."""

LONE_SURROGATE = chr(0xD800)


class RudeClient:
    """A client that does each of these in turn, in any order."""

    def __init__(self, server: ServerProcess, ledger: Ledger, random: Random) -> None:
        self._server, self._ledger, self._random = server, ledger, random
        self._url = server.urls["inference"]

    async def run(self, stop: asyncio.Event) -> None:
        """Misbehave until `stop` is set."""
        habits = [
            *(self._too_large, self._bad_framing, self._long_header, self._malformed, self._percents),
            *(self._surrogate, self._unknown, self._half, self._leave, self._cancel),
            *(self._read_slowly, self._write_slowly),
        ]
        while not stop.is_set():
            await self._random.choice(habits)()
            await asyncio.sleep(self._random.random() * 0.1)

    # Refused before an API sees them.

    async def _refused(self, data: bytes, *statuses: int) -> None:
        """Send bytes that must be refused with one of these statuses, and the connection be closed."""
        async with await HttpConnection.open(self._url) as connection:
            try:
                # The server may have heard enough; its answer may still be there.
                with contextlib.suppress(OSError):
                    await connection.send(data)
                answer = await connection.answer()
            except Cut as cut:
                self._ledger.fault(f"not refused, but cut: {data[:80]!r}: {cut}")
                return
        self._ledger.refused += 1
        self._ledger.count(answer.status)
        if answer.status not in statuses or not answer.closes:
            self._ledger.fault(f"not refused: {data[:80]!r}: {answer.status} {answer.headers}")

    async def _too_large(self) -> None:
        size = MAX_REQUEST_SIZE + self._random.randint(1, 1 << 20)
        if self._random.random() < 0.5:
            await self._refused(_post({"content-length": str(size)}) + bytes(1 << 16), 413)
        else:
            chunk = b"%x\r\n%b\r\n" % (size, bytes(size))
            await self._refused(_post({"transfer-encoding": "chunked"}) + chunk, 413)

    async def _bad_framing(self) -> None:
        ending = self._random.choice(BAD_FRAMING)
        head = f"POST /predictions/{TARGET.name} HTTP/1.1\r\nhost: localhost\r\n".encode()
        await self._refused(head + ending, 400, 501)

    async def _long_header(self) -> None:
        await self._refused(_post({"x-long": "a" * 100_000}), 431)

    # Answered by the server or by a model.

    async def _answered(
        self, path: str, body: bytes, headers: dict[str, str], *statuses: int, method: str = "POST"
    ) -> Answer | None:
        async with await HttpConnection.open(self._url) as connection:
            try:
                answer = await connection.ask(method, path, body, headers)
            except Cut as cut:
                self._ledger.fault(f"lost: {method} {path} {body[:80]!r}: {cut}")
                return None
        self._ledger.count(answer.status)
        if answer.status not in statuses:
            text = f"{method} {path} {body[:80]!r}: {answer.status} {answer.body[:300]!r}"
            self._ledger.fault(f"unexpected: {text}")
        return answer

    async def _malformed(self) -> None:
        """JSON that is none: a model of tensors refuses it, a handler gets the bytes."""
        body = self._random.choice(
            [b"{", b'{"id": }', b"[" * 50_000, b"\xff\xfe", b'{"inputs": 7}', b"", b"nul", b"1e999999"]
        )
        await self._answered(f"/v2/models/{TENSORS.name}/infer", body, JSON, 400)
        await self._to_target(body, JSON)

    async def _percents(self) -> None:
        body = b"a=" + b"%" * self._random.choice([1000, 100_000, 500_000])
        await self._to_target(body, {"content-type": "application/x-www-form-urlencoded"})

    async def _to_target(self, body: bytes, headers: dict[str, str]) -> None:
        """Send the target model what has no id; its answer has none either."""
        asked = self._ledger.ask(TARGET, "rude", expects=200)
        client = RestClient(self._url, self._ledger)
        await client.ask(asked, f"/predictions/{TARGET.name}", body, headers, read=_without_id(asked))
        await client.close()

    async def _surrogate(self) -> None:
        """Half a character in a refusal: it cannot be written as UTF-8."""
        asked = self._ledger.ask(FAILING, "rude", expects=422)
        client = RestClient(self._url, self._ledger)
        body = payload(asked, verb="refuse", message=f"no{LONE_SURROGATE}")
        await client.ask(asked, f"/predictions/{FAILING.name}", body)
        await client.close()

    async def _unknown(self) -> None:
        method, path, status = self._random.choice(
            [
                ("POST", "/predictions/nobody", 404),
                ("POST", "/predictions/echo/99", 404),
                ("DELETE", "/predictions/echo", 405),
                ("PATCH", "/predictions/echo", 405),
                ("POST", "/v2/models/nobody/infer", 404),
                ("GET", "/" + "a/" * 5000, 404),
                ("GET", "/%00%ff%2e%2e/%", 404),
                ("GET", "/ping", 200),
            ]
        )
        # Health may be bad for a moment, while a worker is replaced.
        also = (500,) if path == "/ping" else ()
        await self._answered(path, b"", {}, status, *also, method=method)

    # Clients that leave.

    async def _half(self) -> None:
        """Leave in the middle of a head or a body: that is no request."""
        whole = _post({"content-length": "1000", **JSON}, LEFT.name) + b"{" * 1000
        data = whole[: self._random.randint(1, len(whole) - 1)]
        async with await HttpConnection.open(self._url) as connection:
            await connection.send(data)
            await asyncio.sleep(self._random.choice([0, 0.02]))
            await self._go(connection)

    async def _leave(self) -> None:
        """Leave after a whole request, before its answer is there or read."""
        asked = self._ledger.ask(LEFT, "leaving", padding=self._random.choice([0, 200_000]))
        body = payload(asked)
        async with await HttpConnection.open(self._url) as connection:
            await connection.send(_post({"content-length": str(len(body)), **JSON}, LEFT.name) + body)
            self._ledger.left += 1
            await asyncio.sleep(self._random.choice([0, 0.02, 0.2]))
            await self._go(connection)

    async def _go(self, connection: HttpConnection) -> None:
        if self._random.random() < 0.5:
            connection.reset()
        else:
            connection.abandon()

    async def _cancel(self) -> None:
        """Cancel a call, or be answered first."""
        asked = self._ledger.ask(LEFT, "cancelling")
        async with GrpcClient(self._server.ports["grpc_inference"]) as client:
            call = client.call(INFERENCE, "Predictions", prediction(LEFT.name, data=payload(asked)))
            answering = asyncio.ensure_future(answer_of(call, lambda found: found.prediction))
            await asyncio.sleep(self._random.choice([0.005, 0.02, 0.1]))
            if call.cancel():
                self._ledger.cancelled += 1
            with contextlib.suppress(Cut, asyncio.CancelledError, grpc.aio.AioRpcError):
                self._ledger.answered(asked, await answering)

    # Slow ones.

    async def _read_slowly(self) -> None:
        asked = self._ledger.ask(ECHO, "slow-reader", padding=self._random.randint(1 << 20, 4 << 20))
        await self._slowly(asked, pause_s=self._random.uniform(0.2, 1.5))

    async def _write_slowly(self) -> None:
        asked = self._ledger.ask(ECHO, "slow-writer")
        await self._slowly(asked, pieces=self._random.randint(2, 20))

    async def _slowly(self, asked: Asked, **how: float) -> None:
        client = RestClient(self._url, self._ledger)
        body = payload(asked, filling="y" * 20_000)
        await client.ask(asked, f"/predictions/{ECHO.name}", body, **how)
        await client.close()


def _post(headers: dict[str, str], model: str = TARGET.name) -> bytes:
    return request_head("POST", f"/predictions/{model}", headers)


def _without_id(asked: Asked):  # type: ignore[no-untyped-def]
    def read(answer: Answer) -> Answer:
        """The answer as one that the ledger takes, if its id is null."""
        if answer.status != 200:
            return answer
        content = json.loads(answer.body)
        return Answer(200, answer.headers, b"" if content["id"] is None else answer.body)

    return read
