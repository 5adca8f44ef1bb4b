"""The live rows of a model whose handler streams, by the front's numbers.

    rows = LiveRows(handler.live_rows(), max_response_size, ended)
    rows.join(7, "id", {"body": b"Once"}, {"accept": "*/*"})
    rows.step()                          # reports for the front: pieces, and ends

The rows themselves are the archive's own runtime's (`torchport_runtime/streaming.py`). Whatever they raise
ends the rows that it may have come from, and nothing else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torchport.server.wire import Answer, Left, Partial
from torchport.server.worker.answers import failed, too_large
from torchport.server.worker.sanitizing import body_of, status_of, text_of

logger = logging.getLogger(__name__)

Reports = list[Partial | Left]
"""What is sent to the front; the caller fills in `slot`, `samples` and `memory`."""


@dataclass(slots=True)
class _Row:
    id: str
    started: float = field(default_factory=time.perf_counter)
    size: int = 0
    """Bytes of its pieces so far."""
    streams: bool = False


class LiveRows:
    """`limit` is the maximum length in bytes of all pieces of an answer; 0: without limit.

    `ended` is called with the seconds that a row was live.
    """

    def __init__(self, rows: Any, limit: int, ended: Callable[[float], None]) -> None:
        self._rows, self._limit, self._ended = rows, limit, ended
        self._live: dict[int, _Row] = {}

    def __len__(self) -> int:
        return len(self._live)

    @property
    def ids(self) -> list[str]:
        """The ids of the live requests."""
        return [row.id for row in self._live.values()]

    def join(self, number: int, id: str, fields: Mapping[str, Any], headers: Mapping[str, str]) -> Reports:
        """Begin a row."""
        self._live[number] = _Row(id)
        return self._done(lambda: self._rows.join(number, fields, headers), [number])

    def leave(self, number: int) -> Reports:
        """Drop a row whose client is gone, unless it has ended."""
        if number not in self._live:
            return []
        self._dropped([number])
        return [_left(number, Answer(status=200, body=b""))]

    def step(self) -> Reports:
        """Compute one step of all rows."""
        reports: Reports = []

        def take_step() -> None:
            for piece in self._rows.step():
                reports.extend(self._taken(piece))

        return reports + self._done(take_step, list(self._live))

    def _taken(self, piece: Any) -> Reports:
        """Reports of one piece."""
        number = piece.key
        row = self._live[number]
        body, status = body_of(piece.body), status_of(piece.status)
        row.size += len(body)
        answer = Answer(status, body, text_of(piece.content_type))
        if self._limit and row.size > self._limit:
            logger.warning("a streamed answer is cut off: %s", too_large(row.size, self._limit))
            answer = failed(500, too_large(row.size, self._limit), 1)[0]
        elif status >= 400 and row.streams:
            # What was sent looks like an answer: the front must cut it off.
            answer.error = "BadRequestException" if status < 500 else "InternalServerException"
        elif not piece.is_last:
            row.streams = True
            return [Partial(0, number, 0, answer)]
        self._dropped([number])
        return [_left(number, answer)]

    def _done(self, do: Callable[[], None], numbers: list[int]) -> Reports:
        """Do it; if it fails, the reports that these rows have failed."""
        try:
            do()
            return []
        except SystemExit:
            raise
        except MemoryError:
            logger.exception("out of memory")
            answer = failed(507, "Out of resources", 1)[0]
        except BaseException as err:
            logger.error("the handler failed", exc_info=err)
            answer = failed(503, "Prediction failed", 1)[0]
        lost = [number for number in numbers if number in self._live]
        self._dropped(lost)
        return [_left(number, answer) for number in lost]

    def _dropped(self, numbers: list[int]) -> None:
        for number in numbers:
            self._ended(time.perf_counter() - self._live.pop(number).started)
            try:
                self._rows.leave(number)  # Where the row has ended there, this does nothing.
            except SystemExit:
                raise
            except BaseException as err:
                with suppress(Exception):
                    logger.error("a row cannot be dropped", exc_info=err)


def _left(number: int, answer: Answer) -> Left:
    return Left(0, number, answer, [], 0)
