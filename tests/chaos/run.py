"""A chaos run from the start of its server to its report.

    report = run(minutes=1, seed=7, folder=Path("chaos"))

1. A server starts on a store of the run's own archives.
2. For a fifth of the time all that is to happen happens. Then the server is left alone until it has settled:
   what it holds now is the steady state.
3. For the rest of the time it happens again. What the server holds then is compared with the steady state,
   and `/metrics` with what the clients counted.
4. SIGTERM under load; a restart from the snapshot, which must serve the same models.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import psutil

import torchport
from tests.chaos.clients import Client, RestClient, payload
from tests.chaos.counts import differences, total
from tests.chaos.disturbances import Disturbances
from tests.chaos.ending import Ending
from tests.chaos.ledger import Kind, Ledger
from tests.chaos.leftovers import MARK, Footprint, footprint, marked_processes, unpacked_archives
from tests.chaos.models import FAILING, LEFT, MODELS, TARGET, TENSORS, write_model
from tests.chaos.operator import Operator
from tests.chaos.report import Report
from tests.chaos.rude_clients import RudeClient
from torchport.store.folders import Store
from torchport.targets.torchport_serve import ServerProcess, start

CLIENTS, RUDE_CLIENTS = 9, 3
WARMING_UP = 0.2
"""Part of the time that is spent before the steady state is measured."""

SETTLING_S = 60.0
"""Maximum seconds after the load until every model has its workers, and no process is too many."""

SETTINGS = {"enable_model_api": "true"}


def run(*, minutes: float, seed: int, folder: Path) -> Report:
    """Run for about so many minutes; everything that is written is in `folder`."""
    chaos = Chaos(seed, folder)
    return asyncio.run(chaos.run(minutes))


class Chaos:
    """One run."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._seed, self._folder = seed, folder
        self._mark = uuid.uuid4().hex
        self._store, self._seen = folder / "store", folder / "seen"
        self._scratch = folder / "tmp"
        self._scratch.mkdir(parents=True)
        self.ledger = Ledger()

    async def run(self, minutes: float) -> Report:
        report, ledger = Report(self._seed, minutes, self._folder), self.ledger
        for model in MODELS:
            write_model(self._store, model, seen=self._seen)
        server = await self._start()
        try:
            await self._disturb_and_compare(server, minutes * 60, report)
            await self._end_and_restart(server, report)
        except (OSError, psutil.Error) as err:
            if server.process.poll() is None:
                raise
            ledger.fault(f"the server ended by itself, exit code {server.process.returncode}: {err!r}")
        finally:
            if server.process.poll() is None:
                server.stop()
            (self._folder / "events.txt").write_text("\n".join([*report.lines, *ledger.events]) + "\n")
        report.faults = ledger.faults
        return report

    async def _start(self) -> ServerProcess:
        environment = {
            MARK: self._mark,
            "TMPDIR": str(self._scratch),
            # The workers' torchport is that of this process, whatever is installed.
            "PYTHONPATH": str(Path(torchport.__file__).parent.parent),
        }
        # No --ncs: the server keeps snapshots of its models.
        options: Mapping[str, Any] = {
            "settings": SETTINGS,
            "arguments": (),
            "environment": environment,
        }
        return await asyncio.to_thread(start, Store(self._store), self._folder / "run", **options)

    # Load and disturbances.

    async def _disturb_and_compare(self, server: ServerProcess, seconds: float, report: Report) -> None:
        operator, ledger = Operator(server, self.ledger), self.ledger
        disturbances = Disturbances(operator, self._store, self._seen, str(self._seed))
        before = await operator.metrics()
        await self._round("first", operator, disturbances, seconds * WARMING_UP)
        steady = await self._settle(operator)
        await self._round("second", operator, disturbances, seconds * (1 - WARMING_UP))
        later = await self._settle(operator)
        for growth in steady.growth(later):
            ledger.fault(f"left over: {growth}")
        samples = await operator.metrics()
        # The scrape itself is counted after its answer has been written.
        ledger.statuses["2XX"] -= 1
        for difference in differences(ledger, before, samples, MODELS):
            ledger.fault(f"metrics: {difference}")
        ledger.statuses["2XX"] += 1
        self._check_retries(samples, disturbances)
        self._check_deaths(server, disturbances)
        report.lines += [self._requests(), self._happened(disturbances, samples), steady.difference(later)]

    async def _round(self, name: str, operator: Operator, disturbances: Disturbances, seconds: float) -> None:
        """Load the server and disturb it for so long; returns when all have been answered."""
        stop, ledger, server = asyncio.Event(), self.ledger, operator.server
        ledger.note(f"the {name} round")
        clients: list[Any] = [
            Client(server, ledger, Random(f"{self._seed}/{name}/client {n}")) for n in range(CLIENTS)
        ]
        clients += [
            RudeClient(server, ledger, Random(f"{self._seed}/{name}/rude client {n}"))
            for n in range(RUDE_CLIENTS)
        ]
        tasks = [asyncio.ensure_future(client.run(stop)) for client in clients]
        tasks += [asyncio.ensure_future(disturb(stop)) for disturb in disturbances.all()]
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        stop.set()
        await asyncio.gather(*tasks)

    async def _settle(self, operator: Operator) -> Footprint:
        """Wait until each model has its workers and nothing more; then what the server holds."""
        deadline = time.monotonic() + SETTLING_S
        folders = [self._scratch, self._folder / "run"]
        hosts = len({model.share or model.name for model in MODELS}) + sum(m.workers - 1 for m in MODELS)
        while time.monotonic() < deadline:
            samples = await operator.metrics()
            ready = {s.labels["model_name"]: s.value for s in samples if s.name == "torchport_workers_ready"}
            waiting = total(samples, "torchport_queue_length")
            is_complete = all(ready.get(model.name) == model.workers for model in MODELS)
            if is_complete and not waiting and len(operator.workers()) == hosts:
                # One that was stopped while it was idle is noticed with its next request, and none comes now.
                for worker in operator.workers():
                    worker.resume()
                break
            await asyncio.sleep(0.2)
        else:
            self.ledger.fault(
                f"not settled within {SETTLING_S:g} s: {len(operator.workers())} workers of {hosts}, "
                f"ready {ready}, {waiting} requests wait"
            )
        # Connections that clients have just closed are closed by the server a moment later.
        await asyncio.sleep(1.0)
        return footprint(operator.front, self._mark, folders)

    # What was promised beside each answer.

    def _check_retries(self, samples: list[Any], disturbances: Disturbances) -> None:
        """Rows are computed again only if their worker died; they fail only if several died."""
        seen = Counter(self._seen.read_text().split())
        again, retried = seen.total() - len(seen), total(samples, "torchport_retried_requests_total")
        if again > retried:
            self.ledger.fault(f"doubled: handlers began {again} rows again, {retried} were retried")
        stopped = disturbances.counts["stops for good"]
        if self.ledger.hung > stopped:
            self.ledger.fault(
                f"lost: {self.ledger.hung} requests died with workers that the run had not killed so often; "
                f"{stopped} may have, for workers stopped for good"
            )

    def _check_deaths(self, server: ServerProcess, disturbances: Disturbances) -> None:
        """No worker dies but those that the run has killed, or that were asked to exit."""
        gone = re.findall(r"worker \d+ of (\S+) \S+, pid (\d+), is gone: (.*)", server.log())
        if disturbances.counts["kills"] and not gone:
            self.ledger.fault("the log says of no worker that it is gone: look for what it says now")
        by_themselves = Counter(
            (model, reason)
            for model, pid, reason in gone
            if int(pid) not in disturbances.killed
            and not (model == FAILING.name and "exit code 3" in reason and self.ledger.exits)
        )
        for (model, reason), number in by_themselves.items():
            self.ledger.fault(f"{number} workers of {model} died by themselves: {reason}")

    def _requests(self) -> str:
        ends = {kind.value: self.ledger.requests(kind) for kind in Kind}
        said = ", ".join(f"{number} {name}" for name, number in ends.items() if number)
        ledger = self.ledger
        return (
            f"requests: {said}; {ledger.refused} refused, {ledger.left} left by their clients, "
            f"{ledger.cancelled} cancelled"
        )

    def _happened(self, disturbances: Disturbances, samples: list[Any]) -> str:
        said = ", ".join(f"{number} {name}" for name, number in sorted(disturbances.counts.items()))
        restarts = total(samples, "torchport_worker_restarts_total")
        retried = total(samples, "torchport_retried_requests_total")
        return f"{said}; {restarts} workers restarted, {retried} requests retried"

    # The end.

    async def _end_and_restart(self, server: ServerProcess, report: Report) -> None:
        before = await Operator(server, self.ledger).models()
        self.ledger.note("SIGTERM under load")
        ending = Ending(server, self.ledger, Random(f"{self._seed}/ending"))
        await ending.run()
        said = ", ".join(f"{number} {name}" for name, number in sorted(ending.counts.items()))
        report.lines.append(f"SIGTERM under load: ended in {ending.seconds:.1f} s; {said}")
        await self._nothing_left("the end")
        server.stop()
        log = self._folder / "run" / "server.log"
        log.rename(log.with_name("server-before-the-restart.log"))
        restarted = await self._start()
        try:
            after = await Operator(restarted, self.ledger).models()
            if after != before:
                differ = {
                    name: (before.get(name), after.get(name))
                    for name in sorted(before.keys() | after.keys())
                    if before.get(name) != after.get(name)
                }
                self.ledger.fault(f"the restart serves other models: before and now: {differ}")
            await self._ask_each(restarted)
        finally:
            code = await asyncio.to_thread(restarted.stop)
        if code != 0:
            self.ledger.fault(f"the exit code after the restart is {code}")
        await self._nothing_left("the second end")
        report.lines.append(f"restart: {len(after)} models from the snapshot")

    async def _ask_each(self, server: ServerProcess) -> None:
        client = RestClient(server.urls["inference"], self.ledger)
        for model in MODELS:
            if model not in (TENSORS, TARGET, LEFT):
                asked = self.ledger.ask(model, "restarted")
                await client.ask(asked, f"/predictions/{model.name}", payload(asked))
        await client.close()

    async def _nothing_left(self, when: str) -> None:
        """No process of the server and no unpacked archive may outlive it."""
        deadline = time.monotonic() + 10
        while (left := marked_processes(self._mark)) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        if left:
            names = Counter(" ".join(process.cmdline()[:4]) for process in left if process.is_running())
            self.ledger.fault(f"left over after {when}: {len(left)} processes: {dict(names)}")
            for process in left:
                process.kill()
        if unpacked := unpacked_archives([self._scratch, self._folder / "run"]):
            self.ledger.fault(f"left over after {when}: {unpacked} unpacked archives")
