"""Looks at the store every few seconds, and has its news picked up.

    await watch(registry)                # until it is cancelled

An archive that is being written is left alone: it has to look the same twice. One that could not be served is
tried again when it has changed.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from torchport.server.errors import ApiError
from torchport.server.models.known_archives import Identity, KnownArchives
from torchport.server.models.registry import Registry
from torchport.server.models.reloading import reload

logger = logging.getLogger(__name__)

EVERY_S = 2.0
"""Seconds between two looks at the store."""


async def watch(registry: Registry, every_s: float = EVERY_S) -> None:
    """Reload when an archive has come or has changed."""
    store = registry.settings.model_store
    seen: dict[str, Identity] = {}
    """What the last reload has dealt with."""
    async with registry.reloading:  # The start comes first.
        before = await asyncio.to_thread(_look, store)
        failed = {name: identity for name, identity in before.items() if name in registry.failures}
    seen |= failed
    while True:
        await asyncio.sleep(every_s)
        now = await asyncio.to_thread(_look, store)
        moving = [name for name, identity in now.items() if before.get(name) != identity]
        tried = [name for name, identity in now.items() if seen.get(name) == identity]
        before = now
        news = [
            name
            for name in now
            if name not in moving and name not in tried and not registry.known.holds(store, name)
        ]
        if not news:
            continue
        seen |= {name: now[name] for name in news}
        try:
            await reload(registry, skip=[*moving, *tried])
        except ApiError as err:
            logger.error("the store's news could not be picked up: %s", err)
        except Exception:
            # The next look must not depend on this one.
            logger.exception("the store's news could not be picked up")


def _look(store: Path) -> dict[str, Identity]:
    found = {}
    for path in store.glob("*.mar") if store.is_dir() else ():
        identity = KnownArchives.identity(store, path.name)
        if identity is not None:
            found[path.name] = identity
    return found
