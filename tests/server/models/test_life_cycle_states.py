"""The registry against a simple model of it: any changes, in any interleaving, with any worker's fate.

The model is a dictionary: a version is there from the moment at which its archive has been unpacked until
somebody unregisters it, or until its own synchronous registration gives up. Everything else that happens
must leave it alone, and nothing may be left over of what is gone.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.server.models.imagined_workers import ImaginedProcess, SteppedLoop
from tests.server.models.unpacked_model import unpacked_model
from torchport.server.dispatch.job import Job, Kind
from torchport.server.dispatch.worker import State
from torchport.server.errors import (
    ApiError,
    Conflict,
    InternalError,
    InvalidModelVersion,
    ModelNotFound,
    ModelRefused,
    ModelVersionNotFound,
    ServiceUnavailable,
)
from torchport.server.models.life import Life
from torchport.server.models.management import scale
from torchport.server.models.registration import Registration
from torchport.server.models.registry import Registry
from torchport.server.models.unpacked import UnpackedModel
from torchport.server.models.version import ModelVersion
from torchport.server.settings.settings import ServerSettings
from torchport.server.wire import Answer, Join, Row
from torchport.store.folders import version_key

NAMES = strategies.sampled_from(["own", "shared", "streaming"])
"""Versions of `shared` live in one process. Rows join those of `streaming` one by one."""
LIVE_ROWS = 3
"""Maximum number of live rows of a worker of `streaming`."""
NUMBERS = strategies.sampled_from(["1.0", "2.0"])
WORKERS = strategies.sampled_from([1, 2, 3, 0])
ANY = strategies.integers(0, 99)
"""Which one, of as many as there are."""

STARTUP_S = 120
STEPS, EXAMPLES = 50, 80
"""At most so many steps in each example: more than 2,000 in all."""


async def at_once(function: Callable[[], object]) -> None:
    """In the place of a thread that does not take long."""
    function()


class Caller:
    """Gets exactly one answer or error, or none once it is gone."""

    def __init__(self) -> None:
        self.is_gone = False
        self.ends: list[object] = []
        self.has_pieces = False
        self.job: Job | None = None

    def answered(self, job: Job, answer: Answer) -> None:
        self.ends.append(answer)

    def streamed(self, job: Job, piece: Answer) -> None:
        assert not self.ends, "a piece after the end"
        self.has_pieces = True

    def failed(self, job: Job, error: Exception) -> None:
        self.ends.append(error)


@dataclass(eq=False)
class Entry:
    """A registration that was asked for, and the version that it became."""

    name: str
    number: str
    workers: int
    synchronous: bool
    since: float = 0.0
    version: ModelVersion | None = None
    has_started: bool = False
    """Whether it has had all the workers that were wanted at the time."""


@dataclass
class Choice:
    """A request for another default version that waits until the version is ready."""

    entry: Entry
    task: asyncio.Task[Any] = field(repr=False)


class LifeCycle(RuleBasedStateMachine):
    """Rules are what clients, workers, threads and the clock may do."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.loop = SteppedLoop()
        self.patches = [
            mock.patch("torchport.server.dispatch.host.Process", ImaginedProcess),
            mock.patch("torchport.server.models.registry.unpack", self.unpacked),
            mock.patch("torchport.server.models.registry.in_own_thread", self.loop.in_own_thread),
            mock.patch("torchport.server.dispatch.worker.in_own_thread", at_once),
        ]
        for patch in self.patches:
            patch.start()
        self.asked: list[Entry] = []
        self.there: dict[tuple[str, str], Entry] = {}
        self.defaults: dict[str, str] = {}
        self.choices: list[Choice] = []
        self.last_choices: dict[str, Choice] = {}
        self.tasks: list[asyncio.Task[Any]] = []
        self.callers: list[Caller] = []

    @initialize()
    def start(self) -> None:
        async def made() -> Registry:
            return Registry(ServerSettings(model_store=self.folder))

        task = self.loop.create_task(made())
        self.loop.settle()
        self.registry = task.result()
        self.registry.expected.is_over = True

    def unpacked(self, url: str, *_: object, **__: object) -> UnpackedModel:
        """In the place of `unpack`: the URL is the number of the registration."""
        entry = self.asked[int(url)]
        if (entry.name, entry.number) not in self.there:
            self.there[entry.name, entry.number] = entry
            self.defaults.setdefault(entry.name, entry.number)
            entry.since = self.loop.now
        folder = self.folder / url
        folder.mkdir()
        shared: dict[str, Any] = {}
        if entry.name == "shared":
            shared = {"torchport_server": {"shared_worker": "process"}}
        elif entry.name == "streaming":
            shared = {"batchSize": LIVE_ROWS}
        return unpacked_model(name=entry.name, version=entry.number, url=url, folder=folder, config=shared)

    def ask(self, change: Any) -> asyncio.Task[Any]:
        """Begin a change; it goes on as far as it can."""
        task = self.loop.create_task(change)
        self.tasks.append(task)
        self.loop.settle()
        return task

    # What clients do.

    @rule(
        name=NAMES,
        number=NUMBERS,
        workers=WORKERS,
        synchronous=strategies.booleans(),
        at_once=strategies.sampled_from([True, True, False]),
    )
    def register(self, name: str, number: str, workers: int, synchronous: bool, at_once: bool) -> None:
        url = str(len(self.asked))
        self.asked.append(Entry(name, number, workers, synchronous))
        asked = Registration(url=url, initial_workers=workers, synchronous=synchronous)
        self.ask(self.registry.register(asked))
        if at_once:
            self.end_thread(-1)

    def one_that_is_there(self, which: int) -> Entry:
        return self.there[sorted(self.there)[which % len(self.there)]]

    @precondition(lambda self: self.there)
    @rule(which=ANY, by_number=strategies.booleans())
    def unregister(self, which: int, by_number: bool) -> None:
        name = self.one_that_is_there(which).name
        said = self.one_that_is_there(which).number if by_number else self.defaults[name]
        others = [key for key in self.there if key[0] == name and key[1] != said]
        task = self.ask(self.registry.unregister(name, said if by_number else None))
        if others and self.defaults[name] == said:
            assert isinstance(task.exception(), InvalidModelVersion)
        else:
            self.forget(self.there[name, said])

    @precondition(lambda self: self.there)
    @rule(which=ANY)
    def set_default(self, which: int) -> None:
        entry = self.one_that_is_there(which)
        choice = Choice(entry, self.ask(self.registry.set_default(entry.name, entry.number)))
        self.choices.append(choice)
        self.last_choices[entry.name] = choice

    @precondition(lambda self: self.there)
    @rule(which=ANY, workers=WORKERS, synchronous=strategies.booleans())
    def scale(self, which: int, workers: int, synchronous: bool) -> None:
        entry = self.one_that_is_there(which)
        asked = scale(self.registry, entry.name, entry.number, min_worker=workers, synchronous=synchronous)
        self.ask(asked)
        assert entry.version is not None
        assert entry.version.pool.wanted == workers or not self.registry.has(entry.version)

    @rule(name=NAMES, number=NUMBERS)
    def change_what_is_not_there(self, name: str, number: str) -> None:
        if (name, number) in self.there:
            return
        for change in (
            self.registry.unregister(name, number),
            self.registry.set_default(name, number),
            scale(self.registry, name, number),
        ):
            assert isinstance(self.ask(change).exception(), ModelNotFound | ModelVersionNotFound)

    @precondition(lambda self: self.there)
    @rule(
        which=ANY,
        count=strategies.integers(1, 4),
        kind=strategies.sampled_from([Kind.PREDICT, Kind.PREDICT, Kind.EXPLAIN]),
    )
    def predict(self, which: int, count: int, kind: Kind) -> None:
        version = self.registry.find(self.one_that_is_there(which).name)

        async def submit(caller: Caller) -> None:
            caller.job = version.submit(kind, Row("id", [], []), caller)

        for _ in range(count):
            caller = Caller()
            task = self.ask(submit(caller))
            if task.exception() is None:
                self.callers.append(caller)
            else:
                assert isinstance(task.exception(), ServiceUnavailable | ModelRefused)

    @precondition(lambda self: self.callers)
    @rule(which=ANY)
    def hang_up(self, which: int) -> None:
        caller = self.callers[which % len(self.callers)]
        caller.is_gone = True
        assert caller.job is not None
        caller.job.leave()
        self.loop.settle()

    @precondition(lambda self: any(not task.done() for task in self.tasks))
    @rule(which=ANY)
    def leave(self, which: int) -> None:
        """A client leaves: its change goes on without it. Most stay."""
        open_ones = [task for task in self.tasks if not task.done()]
        if which % 4 == 0:
            open_ones[which // 4 % len(open_ones)].cancel()
            self.loop.settle()

    # What threads, workers and the clock do.

    @precondition(lambda self: self.loop.threads)
    @rule(which=ANY)
    def end_thread(self, which: int) -> None:
        self.loop.end_thread(which % len(self.loop.threads))
        self.loop.settle()

    @precondition(lambda self: self.loop.processes)
    @rule(which=ANY, can_load=strategies.sampled_from([True, True, True, False]))
    def work(self, which: int, can_load: bool) -> None:
        self.loop.processes[which % len(self.loop.processes)].work(can_load=can_load)
        self.loop.settle()

    @precondition(lambda self: self.loop.processes)
    @rule()
    def work_all(self) -> None:
        for process in list(self.loop.processes):
            while process.orders:
                process.work(can_load=True)
            self.loop.settle()

    @precondition(lambda self: any(process.rows for process in self.loop.processes))
    @rule()
    def stream(self) -> None:
        for process in list(self.loop.processes):
            process.send_pieces()
        self.loop.settle()

    @precondition(lambda self: self.loop.processes)
    @rule(which=ANY, code=strategies.sampled_from([0, 1, -9]))
    def die(self, which: int, code: int) -> None:
        self.loop.processes[which % len(self.loop.processes)].end(code)
        self.loop.settle()

    @precondition(lambda self: self.loop.processes)
    @rule(which=ANY)
    def stop(self, which: int) -> None:
        """A worker hangs, or gets SIGSTOP: it notices nothing any more."""
        self.loop.processes[which % len(self.loop.processes)].is_stuck = True

    @rule(seconds=strategies.sampled_from([0.3, 1.0, 11.0, STARTUP_S + 6.0]))
    def pass_time(self, seconds: float) -> None:
        self.loop.pass_time(seconds)
        self.loop.settle()

    # What must hold.

    def forget(self, entry: Entry) -> None:
        del self.there[entry.name, entry.number]
        left = [number for name, number in self.there if name == entry.name]
        if not left:
            del self.defaults[entry.name]
            self.last_choices.pop(entry.name, None)
        elif self.defaults[entry.name] == entry.number:
            self.defaults[entry.name] = max(left, key=version_key)

    def update_model(self) -> None:
        """Take note of what came after a wait: versions' workers, registrations that gave up, defaults."""
        for entry in list(self.there.values()):
            if entry.version is None:
                found = self.registry.models[entry.name].versions[entry.number]
                assert found.model.url == str(self.asked.index(entry)), "the name is another's"
                entry.version = found
            pool = entry.version.pool
            entry.has_started |= len(pool.ready) >= pool.wanted
            gave_up = entry.synchronous and entry.workers and not self.registry.has(entry.version)
            if gave_up:
                late = self.loop.now - entry.since >= STARTUP_S
                assert late or pool.failure, "it was removed, and nothing was wrong with it"
                self.forget(entry)
        for choice in [choice for choice in self.choices if choice.task.done()]:
            self.choices.remove(choice)
            self.note_choice(choice)

    def note_choice(self, choice: Choice) -> None:
        entry = choice.entry
        version = entry.version
        assert version is not None
        error = None if choice.task.cancelled() else choice.task.exception()
        if choice.task.cancelled():
            return
        if error is None:
            assert self.there.get((entry.name, entry.number)) is entry
            assert self.last_choices[entry.name] is choice, "another was chosen later"
            self.defaults[entry.name] = entry.number
        elif isinstance(error, ModelVersionNotFound):
            assert self.there.get((entry.name, entry.number)) is not entry
        elif isinstance(error, InternalError):
            assert not version.pool.ready
        else:
            assert isinstance(error, Conflict), error

    @invariant()
    def what_is_there_is_what_was_asked_for(self) -> None:
        if not hasattr(self, "registry"):
            return
        self.update_model()
        found = {
            (name, number): version
            for name, model in self.registry.models.items()
            for number, version in model.versions.items()
        }
        assert found == {key: entry.version for key, entry in self.there.items()}
        assert {name: model.default for name, model in self.registry.models.items()} == self.defaults
        for version in found.values():
            assert version.life not in (Life.LEAVING, Life.GONE)
            alive = [w for w in version.pool.workers if w.state is not State.STOPPING]
            assert len(alive) <= version.pool.wanted + 1, "more workers than are wanted"
        assert not self.loop.errors, self.loop.errors

    @invariant()
    def every_process_has_an_owner(self) -> None:
        if not hasattr(self, "registry"):
            return
        owned = {
            id(worker._host)
            for version in self.registry.serving()
            for worker in version.pool.workers
            if worker.state is not State.GONE
        }
        for process in self.loop.processes:
            host = process.host
            ends_soon = host._leaving is not None or host._killed_because is not None
            assert id(host) in owned or ends_soon, "nobody knows of this process"
            if not host.members:
                assert ends_soon, "it serves nobody, and goes on"

    @invariant()
    def live_rows_are_no_more_than_fit(self) -> None:
        for process in self.loop.processes:
            joining = [order for order in process.orders if isinstance(order, Join)]
            assert len(process.rows) + len(joining) <= LIVE_ROWS
        if hasattr(self, "registry"):
            for version in self.registry.serving():
                for worker in version.pool.workers:
                    assert not worker._live.is_on_trial or len(worker._live) == 1, "it has company"

    @invariant()
    def nobody_is_answered_twice(self) -> None:
        assert all(len(caller.ends) <= 1 for caller in self.callers)

    def teardown(self) -> None:
        try:
            if hasattr(self, "registry"):
                self.end()
        finally:
            for patch in self.patches:
                patch.stop()
            for process in list(self.loop.processes):
                process.kill()
            self.loop.settle()
            self.loop.close()
            shutil.rmtree(self.folder)

    def end(self) -> None:
        """The server ends: nothing is left, everyone has been answered."""
        closing = self.loop.create_task(self.registry.close(5))
        for _ in range(200):
            self.loop.settle()
            while self.loop.threads:
                self.loop.end_thread(0)
                self.loop.settle()
            if closing.done() and all(task.done() for task in self.tasks) and not self.loop.processes:
                break
            self.loop.pass_time(5.0)
        assert closing.done()
        closing.result()
        assert not self.loop.processes, "a process has outlived the server"
        assert all(task.done() for task in self.tasks), "somebody waits for ever"
        for task in self.tasks:
            error = None if task.cancelled() else task.exception()
            assert error is None or isinstance(error, ApiError), repr(error)
        assert all(caller.ends or caller.is_gone for caller in self.callers), "a request was lost"
        assert not self.registry._changes
        kept = {entry.version.model.folder for entry in self.there.values() if entry.version is not None}
        assert set(self.folder.iterdir()) <= kept, "a folder of a removed version is left"
        assert not self.loop.errors, self.loop.errors


TestLifeCycle = pytest.mark.filterwarnings("error")(LifeCycle.TestCase)
TestLifeCycle.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, database=None
)
