"""A request to register a model, its outcome, and the versions registered under one name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torchport.server.models.statistics import RouteStatistics
from torchport.server.models.version import ModelVersion


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A request to register a model. None leaves a setting to the archive and the server.

    `fallback_workers` is the number of workers if neither this nor the archive nor the operator says; None:
    the server chooses.
    """

    url: str
    model_name: str | None = None
    handler: str | None = None
    batch_size: int | None = None
    max_batch_delay: int | None = None
    response_timeout: int | None = None
    startup_timeout: int | None = None
    initial_workers: int | None = None
    fallback_workers: int | None = None
    synchronous: bool = True
    at_startup: bool = False


class Progress(Enum):
    """How far a change of the models has come when its request is answered."""

    DONE = "done"
    STARTED = "started"
    PARTIAL = "partial"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a change of the models. `message` is for the client, `version` what was registered."""

    message: str
    progress: Progress = Progress.DONE
    version: ModelVersion | None = None


class Model:
    """The versions of one model. `routes` counts requests by the version that they name."""

    def __init__(self, routes: dict[str, RouteStatistics]) -> None:
        self.versions: dict[str, ModelVersion] = {}
        self.default = ""
        self.choice: object = None
        """The last request that chose the default version; None if none did."""
        self.routes = routes

    def route(self, version: str | None) -> RouteStatistics:
        name = version or "default"
        if name not in self.routes:
            self.routes[name] = RouteStatistics()
        return self.routes[name]
