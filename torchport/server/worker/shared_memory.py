"""Large data of orders and reports: they lie in memory that this process shares with the front.

    memory = SharedMemory(requests_file, answers_file)
    memory.take_in(order)                # data of the order are views of the requests' memory
    memory.put_out(answers)              # large data of the answers are in the answers' memory
    memory.kept()                        # what the handler still refers to

The requests' memory is mapped read-only. What a handler gets of a form or body is a copy that it may write
to, as from TorchServe; tensors are views.
"""

from __future__ import annotations

import gc
import mmap
import os
import weakref
from collections.abc import Sequence
from typing import Any, cast

from torchport.server.wire import LARGE, Answer, Infer, Place, Predict, Row, Tensor


class SharedMemory:
    """The files are those of the front's arena and box; -1 for one that is missing."""

    def __init__(self, requests_file: int, answers_file: int) -> None:
        self._requests = _mapped(requests_file, mmap.PROT_READ)
        self._answers = _mapped(answers_file, mmap.PROT_READ | mmap.PROT_WRITE)
        self._views: dict[int, weakref.ref[Any]] = {}
        """What was taken in as a view and may still be referred to, by where it starts."""

    def take_in(self, order: Predict | Infer) -> None:
        """Replace places by data."""
        if isinstance(order, Infer):
            for row in order.rows:
                for tensor in row.inputs:
                    if tensor.place is not None:
                        tensor.data = cast(bytes, self._view(tensor.place))
        else:
            for given in order.rows:
                self.take_in_fields(given)

    def take_in_fields(self, row: Row) -> None:
        """Replace places by data in one row."""
        for field in row.fields:
            if field.place is not None:
                field.value = self._copied(field.place)

    def put_out(self, answers: Sequence[Answer]) -> None:
        """Replace large data by places, as far as there is room."""
        if self._answers is None:
            return
        start = 0
        for answer in answers:
            if answer.error:
                continue  # It may be the answer to several rows.
            answer.place, start = self._put(answer.body, start)
            if answer.place is not None:
                answer.body = b""
            for tensor in answer.tensors:
                start = self._put_tensor(tensor, start)

    def kept(self) -> list[int]:
        """Where the views start that somebody still refers to; their memory must not change."""
        if not self._views:
            return []
        if any(view() is not None for view in self._views.values()):
            gc.collect(0)  # What only a circle refers to is not kept.
        self._views = {start: view for start, view in self._views.items() if view() is not None}
        return list(self._views)

    def _view(self, place: Place) -> memoryview:
        import numpy as np  # Who sends tensors has an archive that imports it; others need not wait for it.

        assert self._requests is not None
        array = np.frombuffer(self._requests, np.uint8, place.length, place.start)
        self._views[place.start] = weakref.ref(array)
        return array.data

    def _copied(self, place: Place) -> bytearray:
        assert self._requests is not None
        with memoryview(self._requests) as memory:
            return bytearray(memory[place.start : place.start + place.length])

    def _put_tensor(self, tensor: Tensor, start: int) -> int:
        tensor.place, end = self._put(tensor.data, start)
        if tensor.place is not None:
            tensor.data = b""
        return end

    def _put(self, data: Any, start: int) -> tuple[Place | None, int]:
        """Where the data are now, None if they are to go into the message; and where the next ones begin."""
        assert self._answers is not None
        if len(data) < LARGE or start + len(data) > len(self._answers):
            return None, start
        end = start + len(data)
        self._answers[start:end] = data
        return Place(start, len(data)), end


def _mapped(file: int, protection: int) -> mmap.mmap | None:
    if file < 0:
        return None
    try:
        return mmap.mmap(file, os.fstat(file).st_size, prot=protection)
    finally:
        os.close(file)
