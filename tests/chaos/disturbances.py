"""What happens to the server while it is asked: workers die and stop, models come, go, grow and shrink.

    disturbances = Disturbances(operator, store, seen, "7")
    await asyncio.gather(*(disturb(stop) for disturb in disturbances.all()))

Each disturbance has dice of its own, so that a seed gives the same decisions in each run.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

import psutil

from tests.chaos.models import ECHO, FIRST_VERSION, ROLLED, SCALED, SLOW, VISITOR, write_model
from tests.chaos.operator import Operator

REGISTRATION = f"/models?url={VISITOR.name}-{FIRST_VERSION}.mar&initial_workers=1"

KNOWN_S = 30.0
"""Maximum seconds until a model is known whose registration has begun."""


class Disturbances:
    """The disturbances of a run, and how often each has happened."""

    def __init__(self, operator: Operator, store: Path, seen: Path, seed: str) -> None:
        self._operator, self._ledger = operator, operator.ledger
        self._store, self._seen, self._seed = store, seen, seed
        self._dice: dict[str, Random] = {}
        self.counts: Counter[str] = Counter()
        self.killed: set[int] = set()
        """Processes that this run has killed, or stopped for good."""
        self._version = FIRST_VERSION
        self._late: list[asyncio.Future[Any]] = []
        """Registrations whose answer may still come."""

    def all(self) -> list[Callable[[asyncio.Event], Coroutine[Any, Any, None]]]:
        """The disturbances; each goes on until the event is set, and leaves things in order."""
        return [self.kill, self.stop, self.stop_for_good, self.scale, self.roll, self.come_and_go]

    def _random(self, name: str) -> Random:
        return self._dice.setdefault(name, Random(f"{self._seed}/{name}"))

    def _done(self, name: str, what: object) -> None:
        self.counts[name] += 1
        self._ledger.note(f"{name}: {what}")

    # Signals.

    async def kill(self, stop: asyncio.Event) -> None:
        """Kill a worker, any one, with its children left to the server."""
        random = self._random("kill")
        while not await _set_within(stop, random.uniform(0.3, 1.5)):
            workers = [w for w in self._operator.workers() if w.pid not in self.killed]
            if workers:
                victim = random.choice(workers)
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.killed.add(victim.pid)
                    victim.kill()
                    self._ledger.kills.append(time.monotonic())
                    self._done("kills", victim.pid)

    async def stop(self, stop: asyncio.Event) -> None:
        """Stop a worker for a moment."""
        random = self._random("stop")
        while not await _set_within(stop, random.uniform(0.5, 2.0)):
            workers = [w for w in self._operator.workers() if w.pid not in self.killed]
            if workers:
                victim = random.choice(workers)
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.suspend()
                    self._done("stops", victim.pid)
                    await asyncio.sleep(random.uniform(0.05, 2.0))
                with contextlib.suppress(psutil.NoSuchProcess):
                    if victim.pid not in self.killed:
                        victim.resume()

    async def stop_for_good(self, stop: asyncio.Event) -> None:
        """Stop a worker and leave it: the server must replace it when it does not answer."""
        random = self._random("stop for good")
        while not await _set_within(stop, random.uniform(5.0, 15.0)):
            versions = await self._operator.describe(random.choice([ECHO, SLOW]).name)
            # One that is still loading would fail the synchronous scaling that waits for it.
            pids = [w["pid"] for version in versions for w in version["workers"] if w["status"] == "READY"]
            pids = [pid for pid in pids if pid and pid not in self.killed]
            if pids:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim = psutil.Process(random.choice(pids))
                    self.killed.add(victim.pid)
                    victim.suspend()
                    self._done("stops for good", victim.pid)

    # Management.

    async def scale(self, stop: asyncio.Event) -> None:
        """Scale up and down, several times within milliseconds; at the end as at the beginning."""
        random = self._random("scale")
        while not await _set_within(stop, random.uniform(0.5, 2.5)):
            model = random.choice(SCALED)
            for _ in range(random.randint(2, 6)):
                wanted, waits = random.randint(1, 4), random.random() < 0.1
                path = f"/models/{model.name}?min_worker={wanted}&synchronous={str(waits).lower()}"
                await self._operator.manage("PUT", path, *((200, 206) if waits else (202,)))
                self._done("scalings", f"{model.name} to {wanted}")
                await asyncio.sleep(random.choice([0, 0, 0.01, 0.2]))
        await self.scale_back()

    async def scale_back(self) -> None:
        for model in SCALED:
            path = f"/models/{model.name}?min_worker={model.workers}&synchronous=true"
            await self._operator.manage("PUT", path, 200)

    async def roll(self, stop: asyncio.Event) -> None:
        """Register a new version, make it the default one, unregister the old one."""
        random, manage = self._random("roll"), self._operator.manage
        while not await _set_within(stop, random.uniform(1.0, 4.0)):
            old, new = self._version, f"{int(self._version.partition('.')[0]) + 1}.0"
            archive = write_model(self._store, ROLLED, seen=self._seen, version=new)
            if await manage("POST", f"/models?url={archive.name}&initial_workers=1", 200) is None:
                archive.unlink()
                continue
            self._ledger.allow_default(new)
            if await manage("PUT", f"/models/{ROLLED.name}/{new}/set-default", 200) is None:
                return
            self._ledger.end_default(old)
            self._version = new
            self._done("rollouts", f"{old} to {new}")
            if await manage("DELETE", f"/models/{ROLLED.name}/{old}", 200) is not None:
                (self._store / f"{ROLLED.name}-{old}.mar").unlink()

    async def come_and_go(self, stop: asyncio.Event) -> None:
        """Unregister a model and register it again: sometimes twice at once, or before it was ready."""
        random = self._random("come and go")
        while not await _set_within(stop, random.uniform(1.0, 3.0)):
            self._ledger.away.begin()
            if random.random() < 0.3:
                await self._operator.manage_twice("DELETE", f"/models/{VISITOR.name}", 404)
                await self._operator.manage_twice("POST", REGISTRATION, 409)
            else:
                await self._operator.manage("DELETE", f"/models/{VISITOR.name}", 200)
                await asyncio.sleep(random.uniform(0.0, 0.5))
                if random.random() < 0.5:
                    await self._change_its_mind()
                await self._operator.manage("POST", REGISTRATION, 200)
            self._ledger.away.end()
            self._done("comings and goings", VISITOR.name)
        await asyncio.gather(*self._late)

    async def _change_its_mind(self) -> None:
        """Register, and unregister as soon as the model is known, whether or not it is ready.

        The first registration is answered when it may; it must not touch the next one's model.
        """
        any_status = (200, 404, 409, 500, 503)
        first = asyncio.ensure_future(self._operator.manage("POST", REGISTRATION, *any_status))
        self._late = [*(task for task in self._late if not task.done()), first]
        deadline = time.monotonic() + KNOWN_S
        while not await self._operator.describe(VISITOR.name) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await self._operator.manage("DELETE", f"/models/{VISITOR.name}", 200)
        self._done("registrations cut short", VISITOR.name)


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event is set, now or within these seconds."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()
