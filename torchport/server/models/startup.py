"""Registers the models of the start, by `load_models` or a snapshot.

await load_models(registry, settings)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchport.server.errors import ApiError
from torchport.server.models.registration import Registration
from torchport.server.models.registry import Registry
from torchport.server.settings.settings import ServerSettings
from torchport.store.folders import Store, version_key

logger = logging.getLogger(__name__)

AT_ONCE = 8
"""Maximum number of archives that are unpacked at once when the server starts."""


async def load_models(registry: Registry, settings: ServerSettings) -> None:
    """Register the models of the start; a failure does not stop the rest.

    Their workers start at once. The call returns before they are ready.
    """
    if not settings.model_store.is_dir():
        logger.warning("there is no folder %s, and so no models", settings.model_store)
    snapshot = settings.model_snapshot
    if snapshot is not None:
        await _restore(registry, snapshot)
        return
    asked = startup_registrations(settings, registry.default_workers)
    # Unpacked side by side; registered in order, so that the first version is the default.
    places = asyncio.Semaphore(AT_ONCE)

    async def register(entry: Registration) -> None:
        async with places:
            await _register(registry, entry)

    await asyncio.gather(*map(register, asked))
    await _newest_as_default(registry)


def startup_registrations(settings: ServerSettings, workers: int) -> list[Registration]:
    """The registrations that the setting `load_models` asks for.

    `load_models` is `all`, `none`, or a list of `NAME=FILE` and `FILE`. Each model gets `workers` workers,
    unless its archive's config names another number.
    """

    def entry(url: str, name: str | None = None) -> Registration:
        return Registration(
            url=url, model_name=name, initial_workers=workers, synchronous=False, at_startup=True
        )

    text = settings.load_models.strip()
    if not text or text.lower() == "none":
        return []
    if text.lower() == "all":
        return [entry(path.name) for path in Store(settings.model_store).archive_files()]
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    return [
        entry(_in_store(url, settings), name) if equals else entry(_in_store(name, settings))
        for name, equals, url in pairs
    ]


def _in_store(url: str, settings: ServerSettings) -> str:
    """The name in the store of a path there; else `url`."""
    path = Path(url)
    if "://" not in url and path.parent != Path() and path.resolve().parent == settings.model_store.resolve():
        return path.name
    return url


async def _register(registry: Registry, asked: Registration) -> None:
    try:
        await registry.register(asked)
    except ApiError as err:
        logger.error("%s is not served: %s", asked.url, err)
        registry.failures[asked.url] = str(err)
    except Exception as err:
        # One bad archive must not keep the others from being served.
        logger.exception("%s is not served", asked.url)
        registry.failures[asked.url] = f"{type(err).__name__}: {err}"


async def _newest_as_default(registry: Registry) -> None:
    for model in registry.models.values():
        model.default = max(model.versions, key=version_key)


async def _restore(registry: Registry, snapshot: Mapping[str, Any]) -> None:
    """Register what TorchServe's `model_snapshot` lists: `{"models": {NAME: {VERSION: {...}}}}`."""
    for name, versions in snapshot.get("models", {}).items():
        for number, entry in versions.items():
            asked = Registration(
                url=str(entry["marName"]),
                model_name=name,
                handler=entry.get("handler"),
                batch_size=entry.get("batchSize"),
                max_batch_delay=entry.get("maxBatchDelay"),
                response_timeout=entry.get("responseTimeout"),
                startup_timeout=entry.get("startupTimeout"),
                initial_workers=entry.get("minWorkers"),
                synchronous=False,
                at_startup=True,
            )
            await _register(registry, asked)
            model = registry.models.get(name)
            if model is not None and number in model.versions:
                version = model.versions[number]
                least, most = entry.get("minWorkers"), entry.get("maxWorkers")
                if isinstance(least, int) and isinstance(most, int):
                    version.scale(least, max(least, most))
                if entry.get("defaultVersion"):
                    model.default = number
            else:
                # A store that is missing once must not make the server forget its models.
                registry.unrestored.setdefault(name, {})[number] = dict(entry)
