"""A request that came by gRPC, on its way to a model's worker.

    asked = PendingCall(registry, call, Kind.PREDICT, "linear", "", row)
    answer = await asked.answer()

A call that its client cancels takes its request out of the queue with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator

from torchport.server.dispatch.job import Kind, Waiter
from torchport.server.errors import ApiError, InternalError
from torchport.server.grpc.calls import Call
from torchport.server.models.registry import Registry
from torchport.server.wire import Answer, InferRow, Row

_END = Answer(status=200, body=b"")


class PendingCall:
    """A request in a version's queue.

    Raises:
        ModelNotFound, ModelVersionNotFound, ServiceUnavailable: it cannot be asked.
    """

    def __init__(
        self, registry: Registry, call: Call, kind: Kind, name: str, number: str, row: Row | InferRow
    ) -> None:
        self.version = registry.find(name, number or None)
        self._route = registry.model(name).route(number or None)
        self._limit = registry.settings.max_response_size
        self._waiter = Waiter()
        self._job = self.version.submit(kind, row, self._waiter, call.timeout())
        self._route.requests += 1

    async def answer(self) -> Answer:
        """The model's answer, or the last piece of it.

        Raises:
            ApiError: whatever else came of it, an answer with the status of an error included.
        """
        answer = await self._waiter.answer
        now, job = time.monotonic(), self._job
        self._route.inference_us += (now - job.enqueued) * 1e6
        self._route.queue_us += (job.started - job.enqueued) * 1e6
        return self._checked(answer)

    async def pieces(self) -> AsyncGenerator[Answer, None]:
        """The pieces of an answer as they come, the last one included.

        Raises:
            ApiError: as `answer` does.
        """
        waiter = self._waiter
        waiter.answer.add_done_callback(lambda _: waiter.pieces.put_nowait(_END))
        try:
            while (piece := await waiter.pieces.get()) is not _END:
                yield self._checked(piece)
            yield await self.answer()
        finally:
            waiter.answer.cancel()

    def _checked(self, answer: Answer) -> Answer:
        if answer.error:
            raise _error(answer.body.decode("utf-8", "replace"), answer.status, answer.error)
        if not 200 <= answer.status < 400:
            raise _error(_message(answer.body), answer.status, "InternalServerException")
        size = len(answer.body) + sum(len(tensor.data) for tensor in answer.tensors)
        if size > self._limit:
            raise InternalError(
                f"the model's answer is too large: {size} bytes, max_response_size is {self._limit}"
            )
        return answer


def _error(message: str, status: int, kind: str) -> ApiError:
    error = ApiError(message)
    error.http_status, error.kind = status, kind
    return error


def _message(body: bytes) -> str:
    """What a handler that answered with an error says: the message of an error in the server's shape, or
    all of it."""
    text = body.decode("utf-8", "replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return text
    message = said.get("message") if isinstance(said, dict) else None
    return message if isinstance(message, str) else text
