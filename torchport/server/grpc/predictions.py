"""A gRPC request in a model's queue, and its answer.

    asked = PendingCall(registry, call, Kind.PREDICT, "linear", "", row)
    answer = await asked.answer()

If the client cancels the call, the request leaves the queue.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable

from torchport.server.dispatch.arena import ALIGNMENT
from torchport.server.dispatch.job import Job, Kind, Waiter
from torchport.server.errors import AnswerTooLarge, ApiError
from torchport.server.grpc.calls import Call, Room
from torchport.server.grpc.reading import beginning_of
from torchport.server.models.registry import Registry
from torchport.server.wire import LARGE, Answer, InferRow, Row


def room_in(registry: Registry) -> Callable[[int], Room]:
    """Gives large messages memory that the workers of the model share, which their first bytes name."""

    def room_for(number: int) -> Room:
        def room(size: int, beginning: memoryview) -> memoryview | None:
            if size < LARGE:
                return None
            name, version, start = beginning_of(beginning, number)
            try:
                arena = registry.find(name, version or None).arena if name else None
            except ApiError:
                return None  # Who answers the request says what is wrong with it.
            # So that the first tensor is aligned.
            skipped = -start % ALIGNMENT
            found = arena.lease(skipped + size) if arena is not None else None
            return None if found is None else found[skipped:]

        return room

    return room_for


_END = Answer(status=200, body=b"")


class _Unread(Waiter):
    """A waiter whose pieces may only take so many bytes before the client reads them."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self.waiting_bytes = 0
        """Bytes of pieces that have not been sent."""

    def streamed(self, job: Job, piece: Answer) -> None:
        self.waiting_bytes += len(piece.body)
        if self.waiting_bytes > self._limit:
            self.failed(
                job,
                ApiError(
                    "the client reads the pieces slower than they come, and max_response_size of them wait",
                    http_status=429,
                ),
            )
        elif not self.answer.done():
            super().streamed(job, piece)


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
        self._waiter = _Unread(self._limit)
        row.id = call.id
        self._job = job = self.version.submit(kind, row, self._waiter, call.timeout(), route=route)
        self._waiter.answer.add_done_callback(job.leaver())

    async def answer(self) -> Answer:
        """The model's answer: all pieces of one that is streamed by live rows, or else the last piece.

        Raises:
            ApiError: the request failed, or the answer has the status of an error.
        """
        answer = self._checked(await self._waiter.answer)
        if self._job.was_live and self._job.streams:
            pieces = self._waiter.pieces
            bodies = [pieces.get_nowait().body for _ in range(pieces.qsize())]
            answer.body = b"".join([*bodies, answer.body])
        return answer

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
                waiter.waiting_bytes -= len(piece.body)
            last = self._checked(await waiter.answer)
            if last.body or not (self._job.was_live and self._job.streams):
                yield last
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
