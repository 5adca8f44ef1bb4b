"""The end of a server under load: SIGTERM, and what comes of the requests at hand.

    await end_under_load(server, ledger)
    ledger.faults

From the signal on, health must be bad, and the exit code be 0 within `EXIT_S`. Each request that the server
had when the signal came must be answered. Later ones may be refused: the connection cannot be opened, or is
closed before the request could be read. None may be taken and then dropped.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from random import Random

from tests.chaos.clients import JSON, GrpcClient, payload
from tests.chaos.http_connection import Cut, HttpConnection
from tests.chaos.ledger import Ledger
from tests.chaos.models import ECHO, SLOW, Model
from torchport.targets.torchport_serve import ServerProcess

EXIT_S = 25.0
"""Seconds to end within; a pod has 30."""

BEFORE_S = 0.5
"""Seconds before the signal in which a request is sent that the server must have read when it comes."""

TAKEN_S = 1.0
"""Seconds without an answer after which a request that is cut off had been taken: a connection that is closed
while idle is closed at once."""

LOADED_S = 2.0
SLOW_CLIENTS, QUICK_CLIENTS, GRPC_CLIENTS = 6, 4, 2


class Ending:
    """The load on a server that is told to end."""

    def __init__(self, server: ServerProcess, ledger: Ledger, random: Random) -> None:
        self._server, self._ledger, self._random = server, ledger, random
        self._signalled = float("inf")
        self._ended = asyncio.Event()
        self.counts: Counter[str] = Counter()
        """Requests: answered before the signal, after it, refused, dropped."""
        self.seconds = 0.0
        """Time from the signal to the end."""

    async def run(self) -> None:
        """Load the server, send SIGTERM, wait for its end; faults are noted in the ledger."""
        ledger, process = self._ledger, self._server.process
        clients = [self._client(SLOW) for _ in range(SLOW_CLIENTS)]
        clients += [self._client(ECHO) for _ in range(QUICK_CLIENTS)]
        clients += [self._grpc_client() for _ in range(GRPC_CLIENTS)]
        tasks = [asyncio.ensure_future(client) for client in clients]
        await asyncio.sleep(LOADED_S)
        self._signalled = time.monotonic()
        process.send_signal(signal.SIGTERM)
        tasks.append(asyncio.ensure_future(self._watch_health()))
        while process.poll() is None and time.monotonic() - self._signalled < EXIT_S:
            await asyncio.sleep(0.02)
        if process.poll() is None:
            ledger.fault(f"SIGTERM: the server has not ended within {EXIT_S:g} s under load")
            process.send_signal(signal.SIGTERM)
            for _ in range(250):
                if process.poll() is not None:
                    break
                await asyncio.sleep(0.02)
            else:
                ledger.fault("SIGTERM: a second one did not end the server within 5 s")
                process.kill()
        code = await asyncio.to_thread(process.wait)
        self.seconds = time.monotonic() - self._signalled
        if code != 0:
            ledger.fault(f"SIGTERM: the exit code is {code}")
        self._ended.set()
        await asyncio.gather(*tasks)

    def _is_owed(self, sent: float, cut: Cut) -> bool:
        """Whether a request without an answer had been taken by the server."""
        return sent < self._signalled - BEFORE_S or cut.waited_s > TAKEN_S

    async def _client(self, model: Model) -> None:
        """Ask on one connection after another, until none can be opened."""
        while not self._ended.is_set():
            try:
                connection = await HttpConnection.open(self._server.urls["inference"])
            except OSError as err:
                self._refused(f"cannot connect: {err}")
                return
            async with connection:
                while connection.is_open:
                    await self._ask(model, connection)

    async def _ask(self, model: Model, connection: HttpConnection) -> None:
        seconds = self._random.uniform(0.3, 0.8) if model is SLOW else 0.0
        asked = self._ledger.ask(model, "REST")
        headers = {**JSON, "x-request-id": asked.id}
        try:
            body = payload(asked, seconds=seconds)
            answer = await connection.ask("POST", f"/predictions/{model.name}", body, headers)
        except Cut as cut:
            if self._is_owed(asked.sent, cut):
                self.counts["dropped"] += 1
                self._ledger.cut(asked, f"dropped {self._since(asked.sent)}: {cut}")
            else:
                self._refused(str(cut))
            return
        self._ledger.answered(asked, answer)
        self.counts["answered" if asked.sent < self._signalled else "answered after the signal"] += 1
        await asyncio.sleep(0.005)

    async def _grpc_client(self) -> None:
        async with GrpcClient(self._server.ports["grpc_inference"]) as client:
            while not self._ended.is_set():
                asked = self._ledger.ask(SLOW, "gRPC")
                try:
                    answer = await client.predict(asked, seconds=0.3)
                except Cut as cut:
                    if self._is_owed(asked.sent, Cut("", time.monotonic() - asked.sent)):
                        self.counts["dropped"] += 1
                        self._ledger.cut(asked, f"dropped {self._since(asked.sent)}: {cut}")
                    else:
                        self._refused(str(cut))
                    return
                if answer.status == 503 and asked.sent > self._signalled - BEFORE_S:
                    self._refused("503")
                    return
                self._ledger.answered(asked, answer)
                self.counts["answered"] += 1

    def _refused(self, reason: str) -> None:
        if self._signalled > time.monotonic():
            self._ledger.fault(f"lost before SIGTERM: {reason}")
        self.counts["refused after the signal"] += 1

    def _since(self, sent: float) -> str:
        return f"at SIGTERM, sent {sent - self._signalled:+.2f} s from the signal"

    async def _watch_health(self) -> None:
        """Health must be bad as soon as the signal has been handled."""
        await asyncio.sleep(TAKEN_S)
        while not self._ended.is_set():
            try:
                async with await HttpConnection.open(self._server.urls["inference"]) as connection:
                    answer = await connection.ask("GET", "/ping")
            except (OSError, Cut):
                return
            if answer.status != 503:
                self._ledger.fault(f"SIGTERM: /ping is {answer.status} afterwards")
                return
            await asyncio.sleep(0.1)
