"""Live rows of a worker without a process: time limits, deadlines, ends of rows that are not live."""

import gc
import weakref
from unittest import mock

import pytest

from tests.server.models.imagined_workers import ImaginedProcess, SteppedLoop
from tests.server.models.test_life_cycle_states import Caller, at_once
from tests.server.models.unpacked_model import unpacked_model
from torchport.server.dispatch.host import SharedHosts
from torchport.server.dispatch.job import Kind
from torchport.server.errors import DeadlineExceeded, InternalError
from torchport.server.models.settings import ModelSettings
from torchport.server.models.statistics import ModelStatistics
from torchport.server.models.version import ModelVersion
from torchport.server.models.worker_spec import WorkerDefaults
from torchport.server.wire import Answer, Leave, Left, Row

LIMIT_S = 100


@pytest.fixture
def loop():
    loop = SteppedLoop()
    with (
        mock.patch("torchport.server.dispatch.host.Process", ImaginedProcess),
        mock.patch("torchport.server.dispatch.worker.in_own_thread", at_once),
    ):
        yield loop
        for process in list(loop.processes):
            process.kill()
        loop.settle()
    assert not loop.errors
    loop.close()


def run(loop, coroutine):
    task = loop.create_task(coroutine)
    loop.settle()
    return task.result()


@pytest.fixture
def version(loop, tmp_path):
    model = unpacked_model(name="streaming", folder=tmp_path)
    settings = ModelSettings(batch_size=3, response_timeout=LIMIT_S)

    async def made():
        version = ModelVersion(model, settings, ModelStatistics(), SharedHosts(), WorkerDefaults())
        version.scale(1, 1)
        return version

    version = run(loop, made())
    (process,) = loop.processes
    process.work(can_load=True)
    loop.settle()
    yield version
    closing = loop.create_task(version.close(0.1))
    for _ in range(20):
        loop.settle()
        if closing.done():
            break
        loop.pass_time(5)
    closing.result()


def ask(loop, version, timeout=None):
    caller = Caller()

    async def submit():
        caller.job = version.submit(Kind.PREDICT, Row("id", [], []), caller, timeout)

    run(loop, submit())
    loop.settle()
    return caller


def join_all(loop, process):
    while process.orders:
        process.work(can_load=True)
    loop.settle()


def test_a_row_must_send_a_piece_or_end_within_the_response_timeout_again_and_again(loop, version):
    (process,) = loop.processes
    caller = ask(loop, version)
    join_all(loop, process)
    for _ in range(5):
        loop.pass_time(LIMIT_S - 1)
        process.send_pieces()
        loop.settle()
    assert caller.has_pieces
    assert not caller.ends
    loop.pass_time(LIMIT_S + 1)
    loop.settle()
    assert process not in loop.processes
    assert isinstance(caller.ends[0], InternalError)


def test_one_silent_row_is_overdue_though_others_send(loop, version):
    (process,) = loop.processes
    silent, other = ask(loop, version), ask(loop, version)
    join_all(loop, process)
    rows, process.rows = process.rows, process.rows[1:]
    loop.pass_time(LIMIT_S - 1)
    process.send_pieces()
    process.rows = rows
    loop.settle()
    loop.pass_time(2)
    loop.settle()
    assert process not in loop.processes
    assert isinstance(other.ends[0], InternalError)
    assert not silent.ends, "it has sent no piece: it is tried again"
    (process,) = loop.processes
    while not silent.ends:
        process.work(can_load=True)
        loop.settle()
    assert silent.ends == [Answer(200, b"last")]


def test_a_row_past_its_deadline_is_no_longer_computed(loop, version):
    (process,) = loop.processes
    caller = ask(loop, version, timeout=10)
    join_all(loop, process)
    loop.pass_time(11)
    loop.settle()
    assert isinstance(caller.ends[0], DeadlineExceeded)
    assert [type(order) for order in process.orders] == [Leave]
    join_all(loop, process)
    assert not process.rows
    assert version.in_flight == 0


def test_the_end_of_a_row_that_is_not_live_costs_the_worker(loop, version):
    (process,) = loop.processes
    caller = ask(loop, version)
    join_all(loop, process)
    process._report(Left(process._slot, 99, Answer(200, b""), [], 0))
    loop.settle()
    assert process not in loop.processes
    assert not caller.ends


def test_a_worker_that_is_gone_is_referred_to_by_nobody(loop, version):
    """What it holds, such as shared memory, is free then and not with a later garbage collection."""
    (process,) = loop.processes
    caller = ask(loop, version)
    join_all(loop, process)
    process.work(can_load=True)
    loop.settle()
    assert caller.ends == [Answer(200, b"last")]
    worker = weakref.ref(version.pool.workers[0])
    gc.disable()
    try:
        process.end(1)
        del process
        loop.settle()
        assert worker() is None
    finally:
        gc.enable()
