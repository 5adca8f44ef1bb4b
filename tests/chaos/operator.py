"""An operator of the server: requests to its management API, each counted and held against its promise.

operator = Operator(server, ledger)
await operator.manage("PUT", "/models/echo?min_worker=3", 200, 202)
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.chaos.http_connection import Answer, Cut, HttpConnection
from tests.chaos.ledger import Ledger
from torchport.targets.torchport_serve import ServerProcess

WORKER = "torchport.server.worker"


class Operator:
    """Asks the management and metrics APIs."""

    def __init__(self, server: ServerProcess, ledger: Ledger) -> None:
        self.server, self.ledger = server, ledger
        self.front = psutil.Process(server.pid)

    async def manage(self, method: str, path: str, *statuses: int) -> Answer | None:
        """Send a request that must be answered with one of these statuses; None if it was not."""
        answer = await self._ask("management", method, path)
        if answer is not None and answer.status not in statuses:
            self.ledger.fault(f"unexpected: {method} {path}: {answer.status} {answer.body[:600].decode()}")
            return None
        return answer

    async def manage_twice(self, method: str, path: str, late: int) -> None:
        """Send the same request twice at once: one must succeed, the other be answered with `late`."""
        answers = await asyncio.gather(*(self._ask("management", method, path) for _ in range(2)))
        statuses = sorted(answer.status for answer in answers if answer is not None)
        if statuses != [200, late]:
            said = [answer.body[:300].decode() for answer in answers if answer is not None]
            self.ledger.fault(f"unexpected: {method} {path}, twice at once: {statuses} {said}")

    async def describe(self, name: str) -> list[dict[str, Any]]:
        """Every version of a model; empty if it is not there."""
        answer = await self.manage("GET", f"/models/{name}/all", 200, 404)
        if answer is None or answer.status == 404:
            return []
        found: list[dict[str, Any]] = json.loads(answer.body)
        return found

    async def models(self) -> dict[str, dict[str, Any]]:
        """Default version, and all versions with their workers, by name."""
        answer = await self.manage("GET", "/models?limit=100", 200)
        listed = json.loads(answer.body)["models"] if answer is not None else []
        found = {}
        for entry in listed:
            name = entry["modelName"]
            versions = await self.describe(name)
            default = next((v["modelVersion"] for v in versions if v["modelUrl"] == entry["modelUrl"]), None)
            workers = {version["modelVersion"]: version["minWorkers"] for version in versions}
            found[name] = {"default": default, "workers": workers}
        return found

    async def metrics(self) -> list[Any]:
        """All samples of `/metrics`."""
        answer = await self._ask("metrics", "GET", "/metrics")
        text = answer.body.decode() if answer is not None else ""
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def workers(self) -> list[psutil.Process]:
        """The server's worker processes."""
        return [child for child in self.front.children() if is_worker(child)]

    async def _ask(self, api: str, method: str, path: str) -> Answer | None:
        try:
            async with await HttpConnection.open(self.server.urls[api]) as connection:
                answer = await connection.ask(method, path)
        except (OSError, Cut) as err:
            self.ledger.fault(f"lost: {method} {path} of the {api} API: {err}")
            return None
        self.ledger.count(answer.status)
        return answer


def is_worker(process: psutil.Process) -> bool:
    try:
        return WORKER in process.cmdline()
    except psutil.Error:
        return False
