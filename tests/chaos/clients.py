"""Ordinary clients: REST, gRPC and Open Inference, each request with a payload of its own.

    client = Client(server, ledger, random.Random("7/client 1"))
    await client.run(stop)

A client asks one request after another, each time another model in another way.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from tests.chaos.http_connection import PATIENCE_S, Answer, Cut, HttpConnection
from tests.chaos.ledger import Asked, Ledger
from tests.chaos.models import BATCHING, ECHO, FAILING, ROLLED, SHARED, SLOW, TENSORS, VISITOR, Model
from tests.server.grpc_client import ANSWERS, INFERENCE, OPEN_INFERENCE, prediction
from torchport.server.grpc.messages import open_inference
from torchport.targets.torchport_serve import ServerProcess

JSON = {"content-type": "application/json"}
PREDICTED = (ECHO, ECHO, SLOW, BATCHING, BATCHING, *SHARED, ROLLED, ROLLED, VISITOR)
TURNS = (1, 3, 10)
"""How often a client asks by one door before it takes another."""
THINKING_S = 0.02
"""Maximum seconds that a client waits between an answer and its next request."""

STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 418,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""HTTP statuses of the same class as gRPC's."""


def payload(asked: Asked, **more: Any) -> bytes:
    """The body of a request to the models of this run."""
    return json.dumps({"id": asked.id, "padding": asked.padding, **more}).encode()


class RestClient:
    """A connection that is opened again whenever it has ended."""

    def __init__(self, url: str, ledger: Ledger) -> None:
        self._url, self._ledger = url, ledger
        self._connection: HttpConnection | None = None

    async def ask(
        self,
        asked: Asked,
        path: str,
        body: bytes,
        headers: Mapping[str, str] = JSON,
        *,
        read: Callable[[Answer], Answer] = lambda answer: answer,
        **how: Any,
    ) -> Answer | None:
        """Send one request and judge its answer; None if there was none.

        `read` puts the answer into the form of the run's models.
        """
        if self._connection is None or not self._connection.is_open:
            self._connection = await HttpConnection.open(self._url)
        try:
            answer = await self._connection.ask(
                "POST", path, body, {**headers, "x-request-id": asked.id}, **how
            )
        except Cut as cut:
            self._ledger.cut(asked, cut)
            return None
        self._ledger.answered(asked, read(answer))
        return answer

    async def close(self) -> None:
        """End the connection: nothing may come beyond the answers."""
        if self._connection is not None and self._connection.is_open:
            left = await self._connection.close()
            if left:
                self._ledger.fault(f"doubled: a connection had more than its answers: {left[:300]!r}")
        self._connection = None


class GrpcClient:
    """A channel to the inference port."""

    def __init__(self, port: int) -> None:
        # Each has its own connection: by default they would share one.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)

    async def __aenter__(self) -> GrpcClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    def call(self, service: str, name: str, message: Any) -> Any:
        """Begin a call; awaited, it gives the answer's message."""
        path = f"/{service}/{name}"
        method = self._channel.unary_unary(
            path,
            request_serializer=lambda given: given.SerializeToString(),
            response_deserializer=ANSWERS[path].FromString,
        )
        return method(message, timeout=PATIENCE_S)

    async def predict(self, asked: Asked, **more: Any) -> Answer:
        """Ask TorchServe's service.

        Raises:
            Cut: no answer came within `PATIENCE_S`.
        """
        message = prediction(asked.model.name, data=payload(asked, **more))
        return await answer_of(self.call(INFERENCE, "Predictions", message), lambda found: found.prediction)


async def answer_of(call: Any, body: Any) -> Answer:
    """The answer of a call, in the form of one by HTTP."""
    try:
        return Answer(200, {}, body(await call))
    except grpc.aio.AioRpcError as err:
        trailing = {name: str(value) for name, value in err.trailing_metadata() or ()}
        # The server sends an id with each of its own answers.
        if "x-request-id" not in trailing or err.code() not in STATUSES:
            raise Cut(f"{err.code().name}: {err.details()}", 0.0) from err
        headers = {name: value for name, value in trailing.items() if name != "x-request-id"}
        return Answer(STATUSES[err.code()], headers, (err.details() or "").encode())


class Client:
    """A client that asks by every door."""

    def __init__(self, server: ServerProcess, ledger: Ledger, random: Random) -> None:
        self._ledger, self._random = ledger, random
        self._rest = RestClient(server.urls["inference"], ledger)
        self._grpc = GrpcClient(server.ports["grpc_inference"])

    async def run(self, stop: asyncio.Event) -> None:
        """Ask until `stop` is set, then end the connections."""
        doors = (self._predict, self._predict, self._predict_by_grpc, self._infer, self._infer_by_grpc)
        async with self._grpc:
            while not stop.is_set():
                door = self._random.choice([*doors, *doors, *doors, self._fail])
                for _ in range(self._random.choice(TURNS)):
                    await door()
                    await asyncio.sleep(self._random.random() * THINKING_S)
                if self._random.random() < 0.02:
                    await self._rest.close()
            await self._rest.close()

    async def _predict(self) -> None:
        random, model = self._random, self._random.choice(PREDICTED)
        padding = random.choice([0, 10, 1000, 100_000]) if model is ECHO else 0
        limit = random.choice([0, 0, 0, 300]) if model is SLOW else 0
        asked = self._ledger.ask(model, "REST", padding=padding, has_limit=bool(limit))
        headers = {**JSON, **({"x-request-timeout-ms": str(limit)} if limit else {})}
        body = payload(asked, **self._work(model))
        await self._rest.ask(asked, f"/predictions/{model.name}", body, headers)

    def _work(self, model: Model) -> dict[str, float]:
        return {"seconds": round(self._random.uniform(0.05, 0.6), 3)} if model is SLOW else {}

    async def _predict_by_grpc(self) -> None:
        model = self._random.choice(PREDICTED)
        asked = self._ledger.ask(model, "gRPC", padding=self._random.choice([0, 1000]))
        await self._judged(asked, self._grpc.predict(asked, **self._work(model)))

    async def _judged(self, asked: Asked, answering: Any) -> None:
        try:
            self._ledger.answered(asked, await answering)
        except Cut as cut:
            self._ledger.cut(asked, cut)

    async def _fail(self) -> None:
        """Ask for a failure; now and then for one that costs workers their lives."""
        status = self._random.choice([404, 418, 429, 500])
        verb, expects, ends = self._random.choice(
            [("raise", 503, False), ("refuse", 422, False), ("status", status, False)] * 6
            + [("exit", None, True)]
        )
        asked = self._ledger.ask(FAILING, "REST", expects=expects, ends_workers=ends)
        body = payload(asked, verb=verb, status=status, message=f"refused: {asked.id}")
        await self._rest.ask(asked, f"/predictions/{FAILING.name}", body)

    # The Open Inference Protocol. The model doubles its input.

    def _numbers(self, asked: Asked) -> list[float]:
        # Whole numbers up to 2**24 are exact in float32.
        return [float(int(asked.id.rpartition("-")[2]) % 2**23), float(self._random.randrange(2**23))]

    async def _infer(self) -> None:
        """By REST, with the numbers in JSON or as bytes behind it."""
        asked = self._ledger.ask(TENSORS, "Open-Inference")
        numbers, is_binary = self._numbers(asked), self._random.random() < 0.5
        tensor: dict[str, Any] = {"name": "x", "shape": [1, 2], "datatype": "FP32"}
        tensor |= {"parameters": {"binary_data_size": 8}} if is_binary else {"data": numbers}
        body, headers = json.dumps({"id": asked.id, "inputs": [tensor]}).encode(), dict(JSON)
        if is_binary:
            headers["inference-header-content-length"] = str(len(body))
            body += struct.pack("<2f", *numbers)
        path = f"/v2/models/{TENSORS.name}/infer"
        await self._rest.ask(
            asked, path, body, headers, read=lambda answer: _read_json(asked, answer, numbers)
        )

    async def _infer_by_grpc(self) -> None:
        asked = self._ledger.ask(TENSORS, "Open-Inference-gRPC")
        numbers = self._numbers(asked)
        message = open_inference.ModelInferRequest(
            model_name=TENSORS.name,
            id=asked.id,
            inputs=[{"name": "x", "shape": [1, 2], "datatype": "FP32"}],
            raw_input_contents=[struct.pack("<2f", *numbers)],
        )
        call = self._grpc.call(OPEN_INFERENCE, "ModelInfer", message)
        await self._judged(asked, answer_of(call, lambda found: _read_message(asked, found, numbers)))


def _read_json(asked: Asked, answer: Answer, numbers: list[float]) -> Answer:
    if answer.status != 200:
        return answer
    found = json.loads(answer.body)
    return replace(answer, body=_content(asked, found.get("id"), found["outputs"][0]["data"], numbers))


def _read_message(asked: Asked, found: Any, numbers: list[float]) -> bytes:
    return _content(asked, found.id, list(struct.unpack("<2f", found.raw_output_contents[0])), numbers)


def _content(asked: Asked, id: object, got: list[float], numbers: list[float]) -> bytes:
    """An answer's body, with the asker's id only if the numbers are its own."""
    own = id == asked.id and got == [2 * number for number in numbers]
    return json.dumps({"id": asked.id if own else f"{id}: {got}", "padding": ""}).encode()
