"""Clients of large bodies that leave, read slowly and lose their workers.

    python -m tests.chaos.large_bodies --minutes 3

Each body is unique. The model answers with its SHA-256, and with the body inverted; both are looked at. It
ends with 1 if a byte was wrong, or if slots or memory are in use when all is over.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import numpy as np
import psutil

from tests.server.archives import write_archive
from tests.server.metrics import metric
from tests.server.waiting import comes_true
from torchport.server.dispatch.arena import KEEP_S
from torchport.server.grpc.messages import open_inference
from torchport.store.folders import Store
from torchport.targets.torchport_serve import ServerProcess, start

HANDLER = """
import hashlib

import numpy as np

from torchport_runtime import Signature, TensorSpec

SIZES = {"batch": (1, 64), "size": (1, 1 << 24)}
DATA, HASH = TensorSpec("uint8", ("batch", "size")), TensorSpec("uint8", ("batch", 32))
SIGNATURE = Signature(inputs={"data": DATA}, outputs={"hash": HASH, "inverted": DATA}, dims=SIZES)


class Hashing:
    def __init__(self):
        self.signatures, self.backends = {"main": SIGNATURE}, {"main": self}

    def initialize(self, context):
        pass

    def run(self, inputs):
        rows = inputs["data"]
        hashes = [np.frombuffer(hashlib.sha256(row).digest(), np.uint8) for row in rows]
        return {"hash": np.stack(hashes), "inverted": ~rows}

    def handle(self, data, context):
        answers = []
        for row in data:
            body = np.frombuffer(row["body"], np.uint8)
            answers.append(hashlib.sha256(body).digest() + (~body).tobytes())
        return answers
"""
"""A handler whose answer shows each byte that it was given."""

SIZE = 8_000_000
CLIENTS = 64
MORE_MEMORY = 20_000_000
"""Bytes by which the front may grow."""
PATIENCE_S = 120.0
AT_REST_S = KEEP_S + 3.0
"""Seconds after which the memory of a burst has been given back."""
SETTINGS = {"max_request_size": "33554432", "max_response_size": "33554432"}

_STAMP = np.dtype("<u8")
_PAGE = 4096


def write_hashing_archive(store: Path, *, workers: int = 2) -> Path:
    """An archive of `HANDLER`, as `store/hashing-1.0.mar`."""
    config = {"minWorkers": workers, "maxWorkers": workers, "batchSize": 4, "responseTimeout": 60}
    return write_archive(store, "hashing", HANDLER, config=config)


class Bodies:
    """Bodies of which no two share a page."""

    def __init__(self, size: int = SIZE) -> None:
        self._base = np.random.default_rng(1).integers(0, 256, size, np.uint8)
        self._count = 0

    def next(self) -> bytes:
        self._count += 1
        body = self._base.copy()
        whole = len(body) - len(body) % _PAGE
        body[:whole].reshape(-1, _PAGE)[:, :8] = np.array([self._count], _STAMP).view(np.uint8)
        return body.tobytes()


def expected(body: bytes) -> bytes:
    """What the model answers."""
    inverted = ~np.frombuffer(body, np.uint8)
    return hashlib.sha256(body).digest() + inverted.tobytes()


@dataclass
class Tally:
    """What came of the requests, and what was wrong."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def check(self, what: str, status: int, answer: bytes, body: bytes) -> None:
        self.outcomes[f"{what}: {status}"] += 1
        if status == 200 and answer != expected(body):
            self.faults.append(f"{what}: a wrong answer of {len(answer)} bytes")
        elif status not in (200, 500, 503):
            self.faults.append(f"{what}: {status} {answer[:200]!r}")


def tensors_of(body: bytes) -> tuple[dict[str, str], bytes]:
    """Headers and body of the Open Inference Protocol's request, in binary form."""
    size = {"binary_data_size": len(body)}
    given = {"name": "data", "datatype": "UINT8", "shape": [1, len(body)], "parameters": size}
    asked = {"inputs": [given], "parameters": {"binary_data_output": True}}
    head = json.dumps(asked).encode()
    return {"Inference-Header-Content-Length": str(len(head))}, head + body


def message_of(body: bytes) -> bytes:
    """The same over gRPC."""
    request = open_inference.ModelInferRequest(model_name="hashing", raw_input_contents=[body])
    request.inputs.add(name="data", datatype="UINT8", shape=[1, len(body)])
    return bytes(request.SerializeToString())


class Attack:
    """Clients of one server."""

    def __init__(self, server: ServerProcess, seed: int) -> None:
        self._server, self._random, self._bodies = server, random.Random(seed), Bodies()
        address = urlsplit(server.urls["inference"])
        self._host, self._port = address.hostname or "", address.port
        self.tally = Tally()

    async def run(self, seconds: float) -> None:
        """Ask until the time is up, while a worker is killed each second."""
        until = time.monotonic() + seconds
        kinds: list[Callable[[], Awaitable[None]]] = [self._stay, self._leave, self._read_slowly]
        clients = [self._client(kinds[number % 3], until) for number in range(CLIENTS - 4)]
        clients += [self._client(kind, until) for kind in (self._call, self._call_and_leave) * 2]
        killing = asyncio.create_task(self._kill_workers())
        await asyncio.gather(*clients)
        killing.cancel()

    async def _client(self, ask: Callable[[], Awaitable[None]], until: float) -> None:
        while time.monotonic() < until:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await ask()
            except TimeoutError:
                self.tally.faults.append(f"{ask.__name__}: no answer in {PATIENCE_S} s")
            except (ConnectionError, asyncio.IncompleteReadError) as err:
                # A refusal may come before the body is through; then the connection ends.
                self.tally.outcomes[f"{ask.__name__}: {type(err).__name__}"] += 1

    async def _kill_workers(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            workers = psutil.Process(self._server.pid).children()
            if workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._random.choice(workers).send_signal(signal.SIGKILL)
                    self.tally.outcomes["killed"] += 1

    def _request(self, body: bytes) -> tuple[str, dict[str, str], bytes]:
        if self._random.random() < 0.5:
            return "/predictions/hashing", {"Content-Type": "application/octet-stream"}, body
        return "/v2/models/hashing/infer", *tensors_of(body)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host, self._port, limit=1 << 16)

    def _head(self, path: str, headers: dict[str, str], length: int) -> bytes:
        lines = [f"POST {path} HTTP/1.1", f"Host: {self._host}:{self._port}", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode()

    async def _stay(self) -> None:
        await self._ask("stays", pause_s=0.0)

    async def _read_slowly(self) -> None:
        await self._ask("reads slowly", pause_s=0.01)

    async def _ask(self, what: str, pause_s: float) -> None:
        body = self._bodies.next()
        path, headers, sent = self._request(body)
        reader, writer = await self._open()
        try:
            writer.write(self._head(path, headers, len(sent)) + sent)
            status, headers, found = await _answer(reader, pause_s)
        finally:
            writer.transport.abort()
        # The bytes of tensors come after the JSON that says which they are.
        self.tally.check(what, status, found[int(headers.get("inference-header-content-length", 0)) :], body)

    async def _leave(self) -> None:
        """Leave while the body is sent, or while the answer is awaited or read."""
        path, headers, sent = self._request(self._bodies.next())
        part = self._random.choice([len(sent) // 3, len(sent) - 1, len(sent)])
        reader, writer = await self._open()
        try:
            writer.write(self._head(path, headers, len(sent)) + sent[:part])
            await writer.drain()
            if part == len(sent):
                await asyncio.sleep(self._random.random() / 4)
        finally:
            writer.transport.abort()
        self.tally.outcomes["leaves"] += 1

    async def _call(self) -> None:
        body = self._bodies.next()
        async with self._channel() as channel:
            try:
                answer = await self._infer(channel)(message_of(body), timeout=PATIENCE_S)
            except grpc.aio.AioRpcError as err:
                self._take_refusal("calls", err)
                return
        self.tally.check("calls", 200, b"".join(answer.raw_output_contents), body)

    async def _call_and_leave(self) -> None:
        async with self._channel() as channel:
            call = self._infer(channel)(message_of(self._bodies.next()), timeout=PATIENCE_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(call.code()), self._random.random() / 4)
            call.cancel()
        self.tally.outcomes["calls and leaves"] += 1

    def _take_refusal(self, what: str, error: grpc.aio.AioRpcError) -> None:
        statuses = {grpc.StatusCode.UNAVAILABLE: 503, grpc.StatusCode.INTERNAL: 500}
        self.tally.check(what, statuses.get(error.code(), 0), str(error).encode(), b"")

    def _channel(self) -> grpc.aio.Channel:
        address = f"127.0.0.1:{self._server.ports['grpc_inference']}"
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        return grpc.aio.insecure_channel(address, [*options, ("grpc.use_local_subchannel_pool", 1)])

    @staticmethod
    def _infer(channel: grpc.aio.Channel) -> grpc.aio.UnaryUnaryMultiCallable:
        return channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            response_deserializer=open_inference.ModelInferResponse.FromString,
        )


async def _answer(reader: asyncio.StreamReader, pause_s: float) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer, of which each piece is waited for."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    pairs = (line.split(": ", 1) for line in lines if line)
    headers = {name.lower(): value for name, value in pairs}
    left, pieces = int(headers["content-length"]), []
    while left:
        piece = await reader.read(min(left, 1 << 16))
        if not piece:
            raise asyncio.IncompleteReadError(b"", left)
        pieces.append(piece)
        left -= len(piece)
        if pause_s:
            await asyncio.sleep(pause_s)
    return int(first.split(" ")[1]), headers, b"".join(pieces)


def run(folder: Path, *, seconds: float, seed: int) -> Tally:
    """Attack a server, and look at what it holds when all is over."""
    write_hashing_archive(folder / "store")
    with start(Store(folder / "store"), folder / "run", settings=SETTINGS) as server:
        front = psutil.Process(server.pid)
        asyncio.run(Attack(server, seed).run(2.0))
        # What allocators and caches keep of the first load, they keep of each.
        is_at_rest = comes_true(lambda: not metric(server, "torchport_shared_memory_slots"), PATIENCE_S)
        time.sleep(AT_REST_S)
        before = front.memory_info().rss
        attack = Attack(server, seed)
        asyncio.run(attack.run(seconds))
        tally = attack.tally
        is_at_rest &= comes_true(lambda: not metric(server, "torchport_shared_memory_slots"), PATIENCE_S)
        if not is_at_rest:
            tally.faults.append(f"{metric(server, 'torchport_shared_memory_slots'):.0f} slots are in use")
        if not comes_true(lambda: front.memory_info().rss <= before + MORE_MEMORY, 30.0):
            more = (front.memory_info().rss - before) / 1e6
            tally.faults.append(f"the front has {more:.0f} MB more than before")
        tally.outcomes["MB more than before"] = round((front.memory_info().rss - before) / 1e6)
    if not any(kind.endswith(": 200") for kind in tally.outcomes):
        tally.faults.append("nothing was answered")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.large_bodies", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long to run (3)")
    parser.add_argument("--seed", type=int, default=15, help="of the decisions (15)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torchport-large-") as folder:
        tally = run(Path(folder), seconds=60 * asked.minutes, seed=asked.seed)
    for outcome, count in sorted(tally.outcomes.items()):
        print(f"{outcome}: {count}")
    print("\n".join(tally.faults) or "no wrong byte, no slot in use")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
