"""A request to register a model, and the versions of a model."""

from __future__ import annotations

from dataclasses import dataclass

from torchport.server.models.statistics import RouteStatistics
from torchport.server.models.version import ModelVersion


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A request to register a model.

    None leaves a setting to the archive and the server.
    """

    url: str
    model_name: str | None = None
    handler: str | None = None
    batch_size: int | None = None
    max_batch_delay: int | None = None
    response_timeout: int | None = None
    startup_timeout: int | None = None
    initial_workers: int | None = None
    synchronous: bool = True
    at_startup: bool = False


class Model:
    """The versions of one model.

    `routes` counts requests by the version that they named, "default" without one.
    """

    def __init__(self, routes: dict[str, RouteStatistics]) -> None:
        self.versions: dict[str, ModelVersion] = {}
        self.default = ""
        self.routes = routes

    def route(self, version: str | None) -> RouteStatistics:
        name = version or "default"
        if name not in self.routes:
            self.routes[name] = RouteStatistics()
        return self.routes[name]
