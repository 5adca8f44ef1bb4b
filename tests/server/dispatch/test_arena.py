"""The memory that the front shares with workers: one owner for each slot, and given back in the end."""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from torchport.server.dispatch import arena as arena_module
from torchport.server.dispatch.arena import Arena
from torchport.server.dispatch.placing import AnswerBox, placed
from torchport.server.wire import (
    HEADER,
    LARGE,
    Answer,
    Answered,
    Field,
    Infer,
    InferRow,
    Place,
    Predict,
    Row,
    Tensor,
    decode_order,
    encode_frame,
)
from torchport.server.worker.shared_memory import SharedMemory

MIB = 1 << 20


def with_arena(use: Callable[[Arena], None], size: int = 16 * MIB) -> None:
    """Call it on an event loop, as the front does."""

    async def run() -> None:
        arena = Arena.create(size)
        assert arena is not None
        try:
            use(arena)
        finally:
            arena.close()

    asyncio.run(run())


def taken(arena: Arena) -> int:
    """Bytes of memory that the arena takes of the system."""
    return os.fstat(arena.file).st_blocks * 512


def test_a_slot_is_free_when_nobody_refers_to_its_bytes() -> None:
    def use(arena: Arena) -> None:
        body = arena.lease(100_000)
        assert body is not None
        assert arena.in_use == 1
        part = body[5:10]
        array = np.frombuffer(part, np.uint8)
        del body, part
        assert arena.in_use == 1
        other = arena.lease(100_000)
        assert other is not None
        other[:] = b"b" * 100_000
        assert array.tobytes() == bytes(5)
        del array, other
        assert arena.in_use == 0

    with_arena(use)


def test_the_next_body_gets_the_memory_of_the_last() -> None:
    def use(arena: Arena) -> None:
        for _ in range(1000):
            body = arena.lease(3 * MIB)
            assert body is not None
            body[:] = b"x" * (3 * MIB)
            del body
        assert taken(arena) <= 4 * MIB

    with_arena(use)


def test_the_last_reference_may_go_in_any_thread() -> None:
    def use(arena: Arena) -> None:
        held = [arena.lease(LARGE)]
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        assert arena.in_use == 0

    with_arena(use)


def test_a_full_arena_has_no_room_and_then_room_of_another_size() -> None:
    def use(arena: Arena) -> None:
        held = [arena.lease(MIB) for _ in range(16)]
        assert None not in held
        assert arena.lease(LARGE) is None
        held.clear()
        assert arena.lease(16 * MIB) is not None
        assert arena.lease(17 * MIB) is None

    with_arena(use)


def test_memory_goes_back_after_a_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena_module, "KEEP_S", 0.0)
    monkeypatch.setattr(arena_module, "TIDY_EVERY_S", 0.01)

    async def burst() -> None:
        arena = Arena.create(64 * MIB)
        assert arena is not None
        held = [arena.copied(b"x" * MIB) for _ in range(40)]
        kept = held.pop()
        assert taken(arena) >= 40 * MIB
        held.clear()
        async with asyncio.timeout(10):
            while taken(arena) > MIB:
                await asyncio.sleep(0.01)
        assert kept == b"x" * MIB
        arena.close()

    asyncio.run(burst())


def test_a_closed_arena_leases_nothing_and_leaves_what_is_used() -> None:
    def use(arena: Arena) -> None:
        body = arena.copied(b"x" * LARGE)
        arena.close()
        assert arena.lease(LARGE) is None
        assert body == b"x" * LARGE

    with_arena(use)


def test_where_addresses_are_limited_none_are_taken_for_bodies() -> None:
    code = """import resource
resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))
from torchport.server.dispatch.arena import Arena
from torchport.server.dispatch.placing import AnswerBox
print(Arena.create(), AnswerBox.create())"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None None\n"


def row_of(*datas: bytes | memoryview) -> InferRow:
    tensors = [Tensor(f"x{n}", "uint8", [len(data)], data) for n, data in enumerate(datas)]
    return InferRow("main", tensors, [], "id")


def test_only_large_data_are_placed_and_the_row_stays_as_it_is() -> None:
    def use(arena: Arena) -> None:
        room = arena.lease(3 * LARGE)
        assert room is not None
        small, large, own = b"s" * (LARGE - 1), b"l" * LARGE, room[64 : 64 + 2 * LARGE]
        row = row_of(small, large, own)
        (sent,), held = placed([row], arena)
        assert isinstance(sent, InferRow)
        assert [tensor.place is None for tensor in sent.inputs] == [True, False, False]
        assert sent.inputs[0].data == small
        assert sent.inputs[2].place == Place(64, 2 * LARGE)
        assert [tensor.place for tensor in row.inputs] == [None] * 3
        assert arena.in_use == 2
        assert len(held) == 2

    with_arena(use)


def test_without_an_arena_or_room_data_stay_in_the_message() -> None:
    row = Row("id", [], [Field("body", "", bytearray(2 * MIB))])
    assert placed([row], None) == ([row], {})

    def use(arena: Arena) -> None:
        assert placed([row], arena) == ([row], {})

    with_arena(use, size=MIB)


def test_another_versions_memory_is_copied() -> None:
    def use(arena: Arena) -> None:
        other = Arena.create(MIB)
        assert other is not None
        body = other.copied(b"x" * LARGE)
        assert body is not None
        assert arena.place_of(body) is None
        (sent,), held = placed([row_of(body)], arena)
        assert isinstance(sent, InferRow)
        assert sent.inputs[0].place is not None
        assert list(held.values()) == [body]
        assert arena.in_use == other.in_use == 1

    with_arena(use)


def received(order: Infer | Predict) -> Any:
    """The order as a worker gets it."""
    return decode_order(encode_frame(order)[HEADER.size :])


def test_what_a_handler_keeps_is_told_until_it_lets_it_go() -> None:
    def use(arena: Arena) -> None:
        worker = SharedMemory(os.dup(arena.file), -1)
        kept = []
        for number in range(3):
            rows, held = placed([row_of(bytes([number]) * LARGE)], arena)
            order = received(Infer(9000, number, rows))
            worker.take_in(order)
            array = np.frombuffer(order.rows[0].inputs[0].data, np.uint8)
            assert not array.flags.writeable
            if number == 1:
                kept.append((array[10:20], list(held), held))
            del array
            order.rows.clear()
            assert worker.kept() == (kept[0][1] if kept else [])
        assert kept[0][0].tolist() == [1] * 10
        kept[0] = (None, *kept[0][1:])
        gc.collect()
        assert worker.kept() == []

    with_arena(use)


def test_a_circle_alone_keeps_nothing() -> None:
    def use(arena: Arena) -> None:
        worker = SharedMemory(os.dup(arena.file), -1)
        rows, held = placed([row_of(b"x" * LARGE)], arena)
        order = received(Infer(9000, 1, rows))
        worker.take_in(order)
        circle = [np.frombuffer(order.rows[0].inputs[0].data, np.uint8)]
        circle.append(circle)
        del circle
        order.rows.clear()
        assert worker.kept() == []
        assert held

    with_arena(use)


def test_a_handlers_bytes_are_a_copy_that_it_may_change() -> None:
    def use(arena: Arena) -> None:
        worker = SharedMemory(os.dup(arena.file), -1)
        rows, held = placed([Row("id", [], [Field("body", "", bytearray(b"x" * LARGE))])], arena)
        order = received(Predict(9000, 1, rows))
        worker.take_in(order)
        value = order.rows[0].fields[0].value
        assert type(value) is bytearray
        value[:1] = b"y"
        assert next(iter(held.values()))[:2] == b"xx"
        assert worker.kept() == []

    with_arena(use)


def box_and_worker() -> tuple[AnswerBox, SharedMemory]:
    box = AnswerBox.create()
    assert box is not None
    return box, SharedMemory(-1, os.dup(box.file))


def test_large_answers_come_back_in_the_box() -> None:
    box, worker = box_and_worker()
    for length in (LARGE - 1, LARGE, 5 * MIB):
        tensors = [Tensor("y", "uint8", [length], b"t" * length), Tensor("z", "uint8", [1], b"z")]
        answers = [Answer(200, b"a" * length), Answer(200, b"b" * length, tensors=tensors)]
        worker.put_out(answers)
        assert (answers[0].body == b"") == (length >= LARGE)
        report = Answered(9000, 1, answers, [], 0)
        box.take_out(report)
        assert [answer.body for answer in answers] == [b"a" * length, b"b" * length]
        assert [tensor.data for tensor in tensors] == [b"t" * length, b"z"]
    assert os.fstat(box.file).st_blocks * 512 <= 4 * MIB + mmap.PAGESIZE
    box.close()


def test_an_error_that_is_shared_by_rows_stays_in_the_message() -> None:
    box, worker = box_and_worker()
    answers = [Answer(503, b"e" * LARGE, error="InternalServerException")] * 2
    worker.put_out(answers)
    assert [answer.body for answer in answers] == [b"e" * LARGE] * 2
    box.close()


@pytest.mark.parametrize(
    "place",
    [Place(-1, 10), Place(0, -1), Place(1 << 30, 1), Place(1, 1 << 30), Place(1 << 62, 1)],
)
def test_a_place_outside_the_box_is_no_report(place: Place) -> None:
    box, _ = box_and_worker()
    with pytest.raises(ValueError, match="is not in the worker's box"):
        box.take_out(Answered(9000, 1, [Answer(200, b"", place=place)], [], 0))
    box.close()
