"""TorchServe's gRPC service of predictions: unary, streamed and bidirectional."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

from torchport.server.dispatch.job import Kind
from torchport.server.errors import ApiError, InvalidRequest
from torchport.server.grpc.calls import Call, Calls, Method, details_of
from torchport.server.grpc.messages import INFERENCE, inference
from torchport.server.grpc.predictions import PendingCall
from torchport.server.grpc.reading import entry_of_map, field_of_bytes
from torchport.server.grpc.status import code_of
from torchport.server.http.parsing import INLINE_BYTES
from torchport.server.models.registry import Registry
from torchport.server.wire import Field, Row

_SEQUENCE_ID, _SEQUENCE_START = "ts_request_sequence_id", "ts_request_sequence_start"
_OURS = (b"describe", b"explain", b"url_path")
"""Headers that would ask a handler for something other than a prediction, for its whole batch. They are
dropped."""


class InferenceService:
    """The service `InferenceAPIsService`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def methods(self, calls: Calls) -> list[Method]:
        """The methods for a gRPC server."""
        request = inference.PredictionsRequest
        return calls.service(
            f"{INFERENCE}.InferenceAPIsService",
            unary={"Ping": (inference.Empty, self._ping), "Predictions": (request, self._predictions)},
            streaming={"StreamPredictions": (request, self._stream)},
            both_ways={"StreamPredictions2": (request, self._exchange)},
        )

    async def _ping(self, request: Any, call: Call) -> Any:
        healthy = self._registry.is_healthy and not self._registry.draining
        said = json.dumps({"status": "Healthy" if healthy else "Unhealthy"}, indent=2)
        return inference.TorchServeHealthResponse(health=said)

    async def _predictions(self, request: Any, call: Call) -> Any:
        answer = await self._ask(request, call).answer()
        return _response(answer.body)

    async def _stream(self, request: Any, call: Call) -> AsyncGenerator[Any, None]:
        async with aclosing(self._ask(request, call).pieces()) as pieces:
            async for piece in pieces:
                yield _response(piece.body)

    async def _exchange(self, requests: AsyncGenerator[Any, None], call: Call) -> AsyncGenerator[Any, None]:
        """Answer requests one after another, each with its sequence id.

        An error is sent as an answer, and the stream goes on.
        """
        async with aclosing(requests):
            async for request in requests:
                sequence = _sequence(request, call)
                try:
                    if not sequence:
                        raise InvalidRequest("Parameter sequenceId is required.")
                    async with aclosing(self._ask(request, call, sequence).pieces()) as pieces:
                        async for piece in pieces:
                            yield inference.PredictionResponse(prediction=piece.body, sequence_id=sequence)
                except ApiError as err:
                    status = inference.Status(code=int(code_of(err)), message=details_of(err))
                    yield inference.PredictionResponse(sequence_id=sequence, status=status)

    def _ask(self, request: Any, call: Call, sequence: str = "") -> PendingCall:
        if not request.model_name:
            raise InvalidRequest("Parameter model_name is required.")
        headers = [pair for pair in call.metadata if pair[0] not in _OURS]
        if sequence:
            headers.append((_SEQUENCE_ID.encode(), sequence.encode("utf-8")))
        headers += [(b"url_path", b""), (b"explain", b"False")]
        fields = [Field(name, "", cast(bytearray, value)) for name, value in _inputs(request, call).items()]
        row = Row(call.id, headers, fields)
        return PendingCall(self._registry, call, Kind.PREDICT, request.model_name, request.model_version, row)


def _inputs(request: Any, call: Call) -> dict[str, bytes | memoryview]:
    """The request's fields by name; large ones are views of the message."""
    return dict(request.input) if call.large is None else dict(map(entry_of_map, call.large))


def _response(body: bytes) -> Any:
    """The message of an answer; a large one as its field's pieces, which are not copied."""
    return (
        inference.PredictionResponse(prediction=body)
        if len(body) <= INLINE_BYTES
        else field_of_bytes(1, body)
    )


def _sequence(request: Any, call: Call) -> str | None:
    """The sequence id of a request.

    A request that begins a sequence without an id gets a new one.
    """
    if request.sequence_id:
        return str(request.sequence_id)
    begins = bytes(_inputs(request, call).get(_SEQUENCE_START, b"")[:8]).lower() == b"true"
    return f"ts-seq-{uuid.uuid4()}" if begins else None
