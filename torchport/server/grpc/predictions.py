"""A gRPC request that waits for a model's worker.

    asked = PendingCall(registry, call, Kind.PREDICT, "linear", "", row)
    answer = await asked.answer()

If the client cancels the call, the request leaves the queue.
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
        ModelNotFound, ModelVersionNotFound: the model or the version is missing.
        ServiceUnavailable: the queue is full, or there are no workers.
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
        """Wait for the model's answer, or for its last piece.

        Raises:
            ApiError: the request failed, or the answer has the status of an error.
        """
        answer = await self._waiter.answer
        now, job = time.monotonic(), self._job
        self._route.inference_us += (now - job.enqueued) * 1e6
        self._route.queue_us += (job.started - job.enqueued) * 1e6
        return self._checked(answer)

    async def pieces(self) -> AsyncGenerator[Answer, None]:
        """The pieces of the answer as they arrive, including the last one.

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
    """The message in a handler's error answer.

    An error that has not the server's shape is returned whole.
    """
    text = body.decode("utf-8", "replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return text
    message = said.get("message") if isinstance(said, dict) else None
    return message if isinstance(message, str) else text
