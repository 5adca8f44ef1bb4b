"""Puts a load on a server of this machine and measures answers.

    messages = http_messages("http://127.0.0.1:8080", recipe)
    put_load("http://127.0.0.1:8080", messages, connections=16, seconds=2.0)   # Measured(per_second=..., ...)

Each connection sends its next request as soon as the last one is answered. Client and server share the
machine's cores: figures compare configurations, and are no absolute ones.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, cast
from urllib.parse import quote, urlsplit

import httptools
import requests

from torchport.errors import ServerError
from torchport.optimize.tune.slo import PERCENTILES
from torchport.recipe.contract import Recipe
from torchport.recipe.requests import recipe_requests
from torchport.server.http.event_loop import event_loop_factory

CONNECTIONS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of connections to load a server with. They are fewer than its queue takes, so that it refuses
nothing."""

PATIENCE_S = 60.0
"""Maximum seconds without any answer. Beyond, the server is given up."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Figures of one run.

    `answers` were counted. `errors` had another status than 200, or none; `reason` is the first
    error's. Latencies are in milliseconds, by percentile.
    """

    per_second: float
    latency_ms: Mapping[str, float]
    answers: int
    errors: int = 0
    reason: str = ""


Ask = Callable[[int, float], Measured]
"""Loads a server with a number of connections for a number of seconds."""


def http_messages(url: str, recipe: Recipe) -> list[bytes]:
    """The bytes of the recipe's requests to a server at `url`."""
    path = f"{url}/predictions/{quote(recipe.name, safe='')}/{quote(recipe.version, safe='')}"
    messages = []
    for request in recipe_requests(recipe):
        content: dict[str, Any] = {
            "data": request.content,
            "headers": {"Content-Type": request.content_type},
        }
        if request.params:
            fields = {name: (None, value) for name, value in request.params.items()}
            content = {"files": {"data": ("data", request.content, request.content_type), **fields}}
        prepared = requests.Request("POST", path, **content).prepare()
        headers = {"Host": urlsplit(url).netloc, **prepared.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        body = prepared.body or b""
        body = body.encode() if isinstance(body, str) else body
        messages.append(f"POST {prepared.path_url} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)
    return messages


def put_load(
    url: str, messages: Sequence[bytes], *, connections: int, seconds: float, warm_up: float = 0.0
) -> Measured:
    """Load a server for `warm_up` seconds, then count its answers for `seconds`.

    Counting begins when every connection has been answered. So neither an earlier load nor a model's
    first sight of a batch size affects the figures. If no answer comes in that time, the first that
    comes later is counted.

    Raises:
        ServerError: no server there, or no answer within `PATIENCE_S`.
    """
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        return runner.run(_put_load(url, messages, connections, seconds, warm_up))


async def _put_load(
    url: str, messages: Sequence[bytes], connections: int, seconds: float, warm_up: float
) -> Measured:
    loop, address = asyncio.get_running_loop(), urlsplit(url)
    run = _Run(connections)
    asking: list[_Connection] = []
    try:
        for number in range(connections):
            # Each begins elsewhere, so that a batch has requests of every kind.
            order = cycle([*messages[number % len(messages) :], *messages[: number % len(messages)]])
            _, connection = await loop.create_connection(
                lambda order=order: _Connection(order, run),  # type: ignore[misc]
                address.hostname or "",
                address.port or 80,
            )
            asking.append(connection)
        await asyncio.sleep(warm_up)
        async with asyncio.timeout(PATIENCE_S):
            await run.warm.wait()
        run.begin()
        await asyncio.sleep(seconds)
        async with asyncio.timeout(PATIENCE_S):
            await run.told.wait()
    except TimeoutError as err:
        raise ServerError(
            f"{url}: no answer within {PATIENCE_S:g} s under {connections} connections"
        ) from err
    except OSError as err:
        raise ServerError(f"no server answers at {url}: {err}") from err
    finally:
        ended = time.perf_counter()
        for connection in asking:
            connection.close()
    return run.measured(ended)


@dataclass
class _Run:
    """Shared state of one run's connections.

    Answers before `begin` are not counted, errors always are. `waiting` is the number of connections
    without an answer; `warm` is set when it is 0. `told` is set at the first counted answer or error.
    """

    waiting: int
    begun: float = math.inf
    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    reason: str = ""
    warm: asyncio.Event = field(default_factory=asyncio.Event)
    told: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self) -> None:
        self.begun = time.perf_counter()

    def answered_first(self) -> None:
        self.waiting -= 1
        if self.waiting == 0:
            self.warm.set()

    def answered(self, asked: float, now: float) -> None:
        if now >= self.begun:
            self.latencies.append(now - asked)
            self.told.set()

    def failed(self, reason: str) -> None:
        self.errors += 1
        self.reason = self.reason or reason
        self.told.set()

    def measured(self, ended: float) -> Measured:
        ordered = sorted(self.latencies)
        return Measured(
            per_second=len(ordered) / max(ended - self.begun, 1e-9),
            latency_ms={name: 1000 * percentile(ordered, int(name[1:])) for name in PERCENTILES},
            answers=len(ordered),
            errors=self.errors,
            reason=self.reason,
        )


def percentile(ordered: Sequence[float], share: int) -> float:
    """Nearest-rank percentile of sorted values; infinite if there are none."""
    return ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)] if ordered else math.inf


class _Connection(asyncio.Protocol):
    """One connection: sends, reads the whole answer, sends again.

    httptools calls its `on_` methods.
    """

    def __init__(self, messages: cycle[bytes], run: _Run) -> None:
        self._messages, self._run = messages, run
        self._transport: asyncio.Transport | None = None
        self._asked = 0.0
        self._closed = self._answered = False
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        if self._transport is not None and not self._closed:
            self._asked = time.perf_counter()
            self._transport.write(next(self._messages))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as err:
            self._fail(f"an answer that is no HTTP: {err}")

    def on_message_complete(self) -> None:
        status, keeps = self._parser.get_status_code(), self._parser.should_keep_alive()
        if status != 200:
            self._fail(f"status {status}")
            return
        self._run.answered(self._asked, time.perf_counter())
        self._had_an_answer()
        if keeps:
            self._ask()
        else:
            self._fail("the server closes the connection after an answer")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the server closed the connection: {exc or 'no reason'}")

    def _fail(self, reason: str) -> None:
        """Count an error and end this connection.

        Sending on to a server that refuses would measure refusals.
        """
        if not self._closed:
            self._run.failed(reason)
            self._had_an_answer()
            self.close()

    def _had_an_answer(self) -> None:
        if not self._answered:
            self._answered = True
            self._run.answered_first()

    def close(self) -> None:
        self._closed = True
        if self._transport is not None:
            self._transport.abort()
