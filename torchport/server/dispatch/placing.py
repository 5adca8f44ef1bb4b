"""Moves large data of requests and answers between messages and shared memory.

rows, held = placed(rows, arena)     # what is sent to a worker; hold `held` until it has answered
box.take_out(report)                 # an answer's data are in its message again
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import cast

import msgspec

from torchport.server.dispatch.anonymous_memory import anonymous_memory
from torchport.server.dispatch.arena import SIZE, Arena
from torchport.server.wire import LARGE, Answered, Field, InferRow, Place, Row, Tensor

KEPT_BYTES = 1 << 22
"""Bytes of a box whose memory stays between batches."""

Held = dict[int, memoryview]
"""The data that a worker finds in an arena, by where they start."""


def placed(rows: Sequence[Row | InferRow], arena: Arena | None) -> tuple[Sequence[Row | InferRow], Held]:
    """The rows with their large data in the arena, as far as it has room.

    The rows that are given stay as they are: they may be sent to another worker.
    """
    held: Held = {}
    if arena is None or not any(_is_large(row) for row in rows):
        return rows, held
    return [_placed(row, arena, held) for row in rows], held


def _is_large(row: Row | InferRow) -> bool:
    if isinstance(row, InferRow):
        return any(len(tensor.data) >= LARGE for tensor in row.inputs)
    return any(len(field.value) >= LARGE for field in row.fields)


def _placed(row: Row | InferRow, arena: Arena, held: Held) -> Row | InferRow:
    if isinstance(row, InferRow):
        inputs = [_placed_tensor(tensor, arena, held) for tensor in row.inputs]
        return InferRow(row.graph, inputs, row.outputs, row.id)
    return Row(row.id, row.headers, [_placed_field(field, arena, held) for field in row.fields])


def _placed_tensor(tensor: Tensor, arena: Arena, held: Held) -> Tensor:
    place = _place(tensor.data, arena, held)
    return tensor if place is None else Tensor(tensor.name, tensor.dtype, tensor.shape, b"", place)


def _placed_field(field: Field, arena: Arena, held: Held) -> Field:
    place = _place(field.value, arena, held)
    return field if place is None else Field(field.name, field.content_type, bytearray(), place)


def _place(data: bytes | bytearray | memoryview, arena: Arena, held: Held) -> Place | None:
    if len(data) < LARGE:
        return None
    place, found = arena.place_of(data), data
    if place is None:
        copied = arena.copied(data)
        if copied is None:
            return None
        place, found = arena.place_of(copied), copied
    assert place is not None
    held[place.start] = cast(memoryview, found)
    return place


class AnswerBox:
    """Shared memory into which one worker's process puts the large data of its answers, batch by batch.

    The process fills it before it sends its report, and touches it no more before its next order.
    """

    def __init__(self, file: int, memory: mmap.mmap) -> None:
        self.file, self._memory = file, memory

    @classmethod
    def create(cls) -> AnswerBox | None:
        """A new one; None where the system has no such memory, or limits this process's addresses."""
        found = anonymous_memory("torchport-answers", SIZE)
        return None if found is None else cls(*found)

    def take_out(self, report: Answered) -> None:
        """Copy what is in the box into the report's answers.

        Raises:
            msgspec.ValidationError: a place is not in the box.
        """
        end = 0
        for answer in report.answers:
            if answer.place is not None:
                answer.body = self._copied(answer.place)
                end = max(end, answer.place.start + answer.place.length)
            for tensor in answer.tensors:
                if tensor.place is not None:
                    tensor.data = self._copied(tensor.place)
                    end = max(end, tensor.place.start + tensor.place.length)
        if end > KEPT_BYTES:
            self._memory.madvise(mmap.MADV_REMOVE, KEPT_BYTES, end - KEPT_BYTES)

    def _copied(self, place: Place) -> bytes:
        if min(place.start, place.length) < 0 or place.start + place.length > SIZE:
            raise msgspec.ValidationError(f"{place} is not in the worker's box of {SIZE} bytes")
        return self._memory[place.start : place.start + place.length]

    def close(self) -> None:
        """Give the memory back."""
        os.close(self.file)
        self._memory.close()
