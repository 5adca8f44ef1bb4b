"""A gRPC request in a model's queue, and its answer.

    asked = PendingCall(registry, call, Kind.PREDICT, "linear", "", row)
    answer = await asked.answer()

If the client cancels the call, the request leaves the queue.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

from torchport.server.dispatch.job import Kind, Waiter
from torchport.server.errors import AnswerTooLarge, ApiError
from torchport.server.grpc.calls import Call
from torchport.server.models.registry import Registry
from torchport.server.wire import Answer, InferRow, Row

_END = Answer(status=200, body=b"")


class PendingCall:
    """A request in a version's queue.

    Raises:
        ModelNotFound, ModelVersionNotFound, ServiceUnavailable: no queue can take the request.
    """

    def __init__(
        self, registry: Registry, call: Call, kind: Kind, name: str, number: str, row: Row | InferRow
    ) -> None:
        self.version = registry.find(name, number or None)
        route = registry.model(name).route(number or None)
        self._limit = registry.settings.max_response_size
        self._waiter = Waiter()
        row.id = call.id
        self.version.submit(kind, row, self._waiter, call.timeout(), route=route)

    async def answer(self) -> Answer:
        """The model's answer, or its last piece.

        Raises:
            ApiError: the request failed, or the answer has the status of an error.
        """
        return self._checked(await self._waiter.answer)

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
            raise ApiError.of(answer)
        if not 200 <= answer.status < 400:
            raise ApiError(_message(answer.body), http_status=answer.status)
        size = len(answer.body) + sum(len(tensor.data) for tensor in answer.tensors)
        if size > self._limit:
            raise AnswerTooLarge(size, self._limit)
        return answer


def _message(body: bytes) -> str:
    """The message of a handler's error: its `message` if it is in the server's form, else all of it."""
    text = body.decode("utf-8", "replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return text
    message = said.get("message") if isinstance(said, dict) else None
    return message if isinstance(message, str) else text
