"""Operations on the models of a server, for every API that manages them.

    registration = Registration(url="linear-1.0.mar", initial_workers=1)
    await register(registry, registration)       # Outcome(message='Model "linear" Version: 1.0 ...', ...)
    await scale(registry, "linear", None, min_worker=2)

Values come typed and are checked here; an error is an `ApiError`, whose message the client gets.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torchport.server.dispatch.job import Kind, Waiter
from torchport.server.errors import (
    ApiError,
    Forbidden,
    InternalError,
    InvalidRequest,
    ModelVersionNotFound,
)
from torchport.server.models.registration import Outcome, Progress, Registration
from torchport.server.models.registry import Registry
from torchport.server.models.version import ModelVersion
from torchport.server.settings.checks import MAX_WORKERS
from torchport.server.settings.settings import ServerSettings
from torchport.server.wire import Row
from torchport.store.folders import version_key

logger = logging.getLogger(__name__)

PAGE = 100
"""Maximum number of models on one page of the list; a larger limit counts as this one."""

RANGES: Mapping[str, tuple[int, int]] = {
    "initial_workers": (0, MAX_WORKERS),
    "batch_size": (1, 1 << 20),
    "max_batch_delay": (0, 1 << 30),
    "response_timeout": (1, 1 << 30),
    "startup_timeout": (0, 1 << 30),
    "min_worker": (0, MAX_WORKERS),
    "max_worker": (0, MAX_WORKERS),
    "timeout": (-1, 1 << 30),
}
"""Minimum and maximum of the whole numbers in requests, by the names that clients use."""

ALL = "all"
"""The version by which clients ask for descriptions of all versions."""


@dataclass(frozen=True, kw_only=True)
class HandlerQuestion:
    """A request to a model's handler to describe the model. `timeout` is in seconds; None: no limit."""

    id: str
    headers: Sequence[tuple[bytes, bytes]]
    timeout: float | None = None


@dataclass(frozen=True, kw_only=True)
class Description:
    """A version, and its handler's answer to a `HandlerQuestion`; empty if it was not asked."""

    version: ModelVersion
    handler_answer: bytes = b""


@dataclass(frozen=True, kw_only=True)
class ModelPage:
    """URLs of archives by model name. `next_page_token` is where the next page starts; None: the end."""

    urls: Mapping[str, str]
    next_page_token: int | None


def refuse_web_pages(settings: ServerSettings, origin: bytes | None) -> None:
    """Refuse requests that a web page sent, unless `cors_allowed_origin` is set.

    A page in a browser on this machine could speak in the name of who looks at it.

    Raises:
        Forbidden: the request has an origin.
    """
    if origin is not None and not settings.cors_allowed_origin:
        raise Forbidden("web pages may not manage models unless cors_allowed_origin is set")


def out_of_range(name: str, value: object) -> InvalidRequest:
    """The error for a value that is no whole number in its range."""
    low, high = RANGES[name]
    return InvalidRequest(f"{name}={str(value)[:40]!r}: a whole number from {low} to {high} is expected")


def _require_range(name: str, value: int | None) -> None:
    low, high = RANGES[name]
    if value is not None and not low <= value <= high:
        raise out_of_range(name, value)


async def register(registry: Registry, registration: Registration) -> Outcome:
    """Load an archive.

    Without `initial_workers`, its workers are the archive's, or the server's `default_workers_per_model`. If
    neither says, there are none, as on TorchServe.

    Raises:
        InvalidRequest: the URL is missing, or a number is out of its range.
        ApiError: the registry refuses the archive.
    """
    if not registration.url:
        raise InvalidRequest("Parameter url is required.")
    for name in ("initial_workers", "batch_size", "max_batch_delay", "response_timeout", "startup_timeout"):
        _require_range(name, getattr(registration, name))
    registration = replace(registration, fallback_workers=0)
    identity = registry.known.identity(registry.settings.model_store, registration.url)
    outcome = await registry.register(registration)
    registry.known.note(registration.url, identity)
    logger.info("registered %s: %s", registration.url, outcome.message)
    registry.changed()
    await registry.recorded()
    return outcome


async def describe(
    registry: Registry, name: str, version: str | None = None, *, question: HandlerQuestion | None = None
) -> list[Description]:
    """Describe a version: the default one if none is named, every version for `ALL`.

    The handler is asked the question of one version only, not of all.

    Raises:
        ModelNotFound, ModelVersionNotFound: there is no such version.
        ServiceUnavailable: no worker can take the question.
        ApiError: the handler answered with an error.
    """
    if version == ALL:
        versions = registry.model(name).versions
        return [Description(version=versions[number]) for number in sorted(versions, key=version_key)]
    found = registry.find(name, version)
    if question is None:
        return [Description(version=found)]
    waiter = Waiter()
    row = Row(question.id, [*question.headers, (b"describe", b"True")], [])
    found.submit(Kind.DESCRIBE, row, waiter, question.timeout)
    answer = await waiter.answer
    if answer.error:
        raise ApiError.of(answer)
    return [Description(version=found, handler_answer=answer.body)]


def list_models(registry: Registry, *, limit: int | None = None, start: int = 0) -> ModelPage:
    """One page of the models, sorted by name, from number `start` on."""
    limit = PAGE if limit is None or not 0 <= limit <= PAGE else limit
    start = max(0, start)
    names, end = sorted(registry.models), start + limit
    return ModelPage(
        urls={name: registry.find(name).model.url for name in names[start:end]},
        next_page_token=end if end < len(names) else None,
    )


async def scale(
    registry: Registry,
    name: str,
    version: str | None,
    *,
    min_worker: int | None = None,
    max_worker: int | None = None,
    synchronous: bool = False,
    timeout: int | None = None,
) -> Outcome:
    """Change the number of a version's workers.

    Args:
        min_worker: 1 unless given.
        max_worker: as `min_worker` unless given.
        synchronous: whether to wait until the workers are ready.
        timeout: seconds to wait; None or -1 for what the workers may take to start.

    Raises:
        InvalidRequest: a number is out of its range, or `max_worker` is below `min_worker`.
        ModelNotFound, ModelVersionNotFound: there is no such version.
            Also if the version was unregistered meanwhile.
        InternalError: the workers did not start.
    """
    _require_range("min_worker", min_worker)
    _require_range("max_worker", max_worker)
    _require_range("timeout", timeout)
    workers = 1 if min_worker is None else min_worker
    most = workers if max_worker is None else max_worker
    if most < workers:
        raise InvalidRequest("max_worker cannot be less than min_worker.")
    found = registry.find(name, version)
    before = found.settings
    found.scale(workers, most)
    logger.info(
        "scaled %s %s: %d to %d workers, before %d to %d",
        *(name, found.model.version, workers, most, before.min_workers, before.max_workers),
        extra={"model": f"{name} {found.model.version}"},
    )
    registry.changed()
    await registry.recorded()
    if not synchronous:
        return Outcome(message="Processing worker updates...", progress=Progress.STARTED)
    limit = found.settings.startup_timeout + 5 if timeout is None or timeout < 0 else timeout
    if await found.pool.wait_ready(workers, limit):
        message = f"Workers scaled to {workers} for model: {name}"
        return Outcome(message=f"{message}, version: {version}" if version else message)
    if not registry.has(found):
        raise ModelVersionNotFound(name, found.model.version)
    if found.pool.wanted < workers:
        message = f"Another request has scaled the workers to {found.pool.wanted} meanwhile"
        return Outcome(message=message, progress=Progress.PARTIAL)
    if found.pool.failed_starts:
        number = found.model.version
        raise InternalError(
            f"Failed to start workers for model {name} version: {number}\n{found.pool.failure}".strip()
        )
    return Outcome(message="Workers scaling in progress...", progress=Progress.PARTIAL)


async def set_default(registry: Registry, name: str, version: str) -> Outcome:
    """Make a version the default one, as soon as it is ready.

    Raises:
        ModelNotFound, ModelVersionNotFound: there is no such version.
        Conflict: another request has chosen meanwhile.
        InternalError: its workers did not start; the default stays what it was.
    """
    before = registry.find(name).model.version
    if not version:  # A client's: the default version has no other name.
        raise ModelVersionNotFound(name, version)
    await registry.set_default(name, version)
    logger.info(
        "default version of %s: %s, before %s", name, version, before, extra={"model": f"{name} {version}"}
    )
    await registry.recorded()
    return Outcome(message=f'Default version successfully updated for model "{name}" to "{version}"')


async def unregister(registry: Registry, name: str, version: str | None = None) -> Outcome:
    """Remove a version, the default one if none is named, after it has answered its waiting requests.

    Raises:
        ModelNotFound, ModelVersionNotFound: there is no such version.
        InvalidModelVersion: it is the default one, and there are others.
    """
    number = version or registry.model(name).default
    await registry.unregister(name, version)
    logger.info("unregistered %s %s", name, number, extra={"model": f"{name} {number}"})
    await registry.recorded()
    return Outcome(message=f'Model "{name}" unregistered')
