"""What a handler writes to stream its answers: `stream` for one request, or `step` for all live ones.

class Spelling(Handler):
    def stream(self, request):
        for letter in request.json():
            yield letter
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from torchport_runtime.requests.request import InferenceRequest
from torchport_runtime.streaming import TEXT, LiveRow, LiveRows, step_generators


class StreamHooks:
    """The part of `Handler` that streams.

    A handler streams its answers if it has `stream`; or `step`, with `join` and `leave`. `stream_type` is
    their content type: text, `application/x-ndjson` for a line of JSON for each piece, `text/event-stream`
    for events, or any other for bytes. By `Accept`, clients may ask for lines or events of text, and for
    events of lines.
    """

    stream_type: ClassVar[str] = TEXT

    def stream(self, request: InferenceRequest) -> Iterator[Any]:
        """Yield the pieces of one request's answer: text, bytes or values for JSON.

        Live requests take turns, a piece each; None is no piece. A generator whose client is gone is closed:
        it gets `GeneratorExit` where it stands. Raise `BadRequest` before the first piece for a 4xx.
        """
        raise NotImplementedError

    def join(self, row: LiveRow) -> None:
        """Read `row.request` and set `row.state`, before the row's first step.

        Raise `BadRequest` with a reason if the request cannot be read.
        """

    def step(self, rows: Sequence[LiveRow]) -> None:
        """Compute one step of all live rows, in one run of the model.

        Call `row.send(piece)` for what is to be sent, and `row.end()` where an answer ends. An exception
        fails all rows; `row.fail(error)` fails one.
        """
        step_generators(rows, self.stream)

    def leave(self, row: LiveRow) -> None:
        """Free what a row holds: it has ended, or its client is gone (`row.is_gone`)."""
        close = getattr(row.state, "close", None)
        if type(self).step is StreamHooks.step and close is not None:
            close()

    @property
    def streams(self) -> bool:
        """Whether this handler streams its answers."""
        own = type(self)
        return own.stream is not StreamHooks.stream or own.step is not StreamHooks.step

    def live_rows(self) -> LiveRows | None:
        """Live rows for a server that makes the steps; None if this handler does not stream."""
        return LiveRows(self) if self.streams else None
