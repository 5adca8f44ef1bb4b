"""gRPC's health checks, `grpc.health.v1`, for the server and its services.

The status is NOT_SERVING while a default version is not ready or the server is ending. No key is needed,
because container probes send none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Collection
from typing import Any

from torchport.server.errors import ResourceNotFound
from torchport.server.grpc.calls import Call, Calls, Method
from torchport.server.grpc.messages import HEALTH, health

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3

WATCH_EVERY_S = 0.2


class HealthService:
    """The service `Health`.

    `services` are the names that clients may ask for. The empty name stands for the server.
    """

    def __init__(self, calls: Calls, is_ready: Callable[[], bool], services: Collection[str]) -> None:
        self._calls, self._is_ready, self._services = calls, is_ready, {"", *services}
        self._stopping = calls.stopping

    def methods(self) -> list[Method]:
        """The methods for a gRPC server."""
        request = health.HealthCheckRequest
        return self._calls.service(
            f"{HEALTH}.Health",
            unary={"Check": (request, self._check)},
            streaming={"Watch": (request, self._watch)},
        )

    def _status(self, service: str) -> int:
        if service not in self._services:
            return SERVICE_UNKNOWN
        return SERVING if self._is_ready() and not self._stopping.is_set() else NOT_SERVING

    async def _check(self, request: Any, call: Call) -> Any:
        status = self._status(request.service)
        if status == SERVICE_UNKNOWN:
            raise ResourceNotFound(f"no service {request.service[:200]!r}")
        return health.HealthCheckResponse(status=status)

    async def _watch(self, request: Any, call: Call) -> AsyncGenerator[Any, None]:
        """Send the status now and at each change, until the server ends."""
        said = None
        while True:
            ending = self._stopping.is_set()
            status = self._status(request.service)
            if status != said:
                said = status
                yield health.HealthCheckResponse(status=status)
            if ending:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_EVERY_S):
                    await self._stopping.wait()
