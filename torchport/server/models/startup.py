"""Registers the models of the start: from the store, by `load_models`, and from a snapshot.

    await load_models(registry, settings, Start())
    await load_models(registry, settings, Start(last=read_last(folder), folder=folder))

A snapshot says which models were served, and how. What the command line names comes before it; so does what
the store has got since. What was restored, and from where, is a warning in the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchport.server.errors import ApiError, ArchiveNotFound
from torchport.server.models.known_archives import KnownArchives
from torchport.server.models.named_archives import is_list, missing_archive, named_archives, parts_of
from torchport.server.models.registration import Registration
from torchport.server.models.registry import Registry
from torchport.server.models.version import ModelVersion
from torchport.server.settings.settings import ServerSettings
from torchport.store.folders import Store, version_key

logger = logging.getLogger(__name__)

AT_ONCE = 8
"""Maximum number of archives that are unpacked at once when the server starts."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a start knows beside its settings.

    `last` is the content of the newest snapshot in `folder`, or None. `named` is whether the command line
    says what is loaded.
    """

    last: Mapping[str, Any] | None = None
    folder: Path = Path()
    named: bool = False

    @property
    def source(self) -> Path:
        """The snapshot's file."""
        return self.folder / str((self.last or {}).get("name", ""))

    @property
    def versions(self) -> dict[str, Mapping[str, Mapping[str, Any]]]:
        """The snapshot's entries by model and version."""
        return dict((self.last or {}).get("models", {}))

    def pinned(self, name: str) -> str | None:
        """The default version of a model in the snapshot, if a newer one was known; None otherwise.

        Somebody has chosen such a version. One that was the newest gives way to a newer one.
        """
        versions = self.versions.get(name, {})
        default = next((number for number, entry in versions.items() if entry.get("defaultVersion")), None)
        return None if default is None or default == max(versions, key=version_key) else default


async def load_models(registry: Registry, settings: ServerSettings, start: Start | None = None) -> None:
    """Register the models of the start; a failure does not stop the rest.

    Their workers start at once. The call returns before they are ready.
    """
    start = start or Start()
    async with registry.reloading:
        await _load(registry, settings, start)
        registry.expected.is_over = True


async def _load(registry: Registry, settings: ServerSettings, start: Start) -> None:
    if not settings.model_store.is_dir():
        logger.warning("there is no folder %s, and so no models", settings.model_store)
    if settings.model_snapshot is not None:
        await _restore(registry, settings.model_snapshot)
        return
    asked = startup_registrations(settings)
    if start.last is None:
        await _register_all(registry, asked)
        _choose_defaults(registry, start)
    elif start.named:
        await _register_all(registry, [_as_before(entry, start) for entry in asked])
        for version in registry.versions():
            entry = start.versions.get(version.model.name, {}).get(version.model.version, {})
            if entry.get("marName") == version.model.url:
                _scale(version, entry)
        _choose_defaults(registry, start)
        _tell_named(registry, start)
    else:
        registry.known = KnownArchives.of_json(start.last.get("archives")) or registry.known
        new = _new_archives(asked, settings.model_store, start)
        await _restore(registry, start.last)
        await _register_all(registry, new)
        _choose_defaults(registry, start)
        _tell_restored(registry, start, [entry.url for entry in new])
    if not registry.models and not registry.failures:
        logger.warning("nothing is served: %s", _why_nothing(settings))


def startup_registrations(settings: ServerSettings) -> list[Registration]:
    """The registrations that the setting `load_models` asks for.

    `load_models` is `all`, `none`, or a list of `NAME`, `NAME@VERSION`, `FILE` and `AS=` one of these. A name
    without an archive is a registration that will fail.
    """

    def entry(url: str, name: str | None = None) -> Registration:
        return Registration(url=url, model_name=name, synchronous=False, at_startup=True)

    store = settings.model_store
    if is_list(settings.load_models):
        pairs = list(parts_of(settings.load_models))
        return [entry(url, name) for name, given in pairs for url in named_archives(given, store) or [given]]
    if settings.load_models.strip().lower() == "all":
        return [entry(path.name) for path in Store(store).archive_files()]
    return []


def _new_archives(asked: Iterable[Registration], store: Path, start: Start) -> list[Registration]:
    """Those that the store has got since the snapshot: newer versions, other models, changed files."""
    restored = {str(entry["marName"]) for versions in start.versions.values() for entry in versions.values()}
    known = KnownArchives.of_json((start.last or {}).get("archives"))
    others = [entry for entry in asked if entry.url not in restored]
    if known is not None:
        return [entry for entry in others if not known.holds(store, entry.url)]
    # A snapshot of TorchServe's, or an older one: what was removed cannot be told from what is new.
    files = {
        path.name: (name, version)
        for name, versions in Store(store).archives().items()
        for version, path in versions.items()
    }
    found = []
    for entry in others:
        name, version = files.get(entry.url, ("", ""))
        had = start.versions.get(entry.model_name or name, {})
        if had and version_key(version) > max(map(version_key, had)):
            found.append(entry)
    return found


def _as_before(asked: Registration, start: Start) -> Registration:
    """A registration with the settings that the snapshot has for the same archive under the same name."""
    for name, versions in start.versions.items():
        for number, entry in versions.items():
            own = asked.url in (f"{name}-{number}.mar", f"{name}.mar")
            if entry["marName"] == asked.url and (name == asked.model_name or (own and not asked.model_name)):
                return replace(_registration(name, entry), model_name=asked.model_name)
    return asked


def _registration(name: str, entry: Mapping[str, Any]) -> Registration:
    return Registration(
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


async def _register_all(registry: Registry, asked: Iterable[Registration]) -> None:
    # Unpacked side by side; registered in order, so that the first version is the default.
    places = asyncio.Semaphore(AT_ONCE)

    async def register(entry: Registration) -> None:
        async with places:
            await _register(registry, entry)

    await asyncio.gather(*map(register, asked))


async def _register(registry: Registry, asked: Registration) -> ModelVersion | None:
    """The version that was registered; None if the archive was refused."""
    store = registry.settings.model_store
    identity = registry.known.identity(store, asked.url)
    try:
        outcome = await registry.register(asked)
        registry.known.note(asked.url, identity)
        return outcome.version
    except ApiError as err:
        reason = str(err)
        if isinstance(err, ArchiveNotFound):
            reason += f" ({missing_archive(asked.url, store)})"
        logger.error("%s is not served: %s", asked.url, reason)
        registry.expected.refused(asked, reason)
    except Exception as err:
        # One bad archive must not keep the others from being served.
        logger.exception("%s is not served", asked.url)
        registry.expected.refused(asked, f"{type(err).__name__}: {err}")
    return None


def _choose_defaults(registry: Registry, start: Start) -> None:
    """Make the newest version of each model its default, unless the snapshot pins another one."""
    for name, model in registry.models.items():
        if model.choice is not None:  # A client has chosen meanwhile.
            continue
        pinned = start.pinned(name)
        model.default = pinned if pinned in model.versions else max(model.versions, key=version_key)


async def _restore(registry: Registry, snapshot: Mapping[str, Any]) -> None:
    """Register what TorchServe's `model_snapshot` lists: `{"models": {NAME: {VERSION: {...}}}}`."""
    for name, versions in snapshot.get("models", {}).items():
        for number, entry in versions.items():
            version = await _register(registry, _registration(name, entry))
            if version is not None and version.model.version == number:
                _scale(version, entry)
                # Clients may have unregistered it by now, or chosen another.
                if entry.get("defaultVersion") and registry.has(version) and not registry.models[name].choice:
                    registry.models[name].default = number
            else:
                # A store that is missing once must not make the server forget its models.
                registry.unrestored.setdefault(name, {})[number] = dict(entry)


def _scale(version: ModelVersion, entry: Mapping[str, Any]) -> None:
    least, most = entry.get("minWorkers"), entry.get("maxWorkers")
    if isinstance(least, int) and isinstance(most, int):
        version.scale(least, max(least, most))


# What is said of it.


def _tell_restored(registry: Registry, start: Start, new: list[str]) -> None:
    restored = [f"{name} {number}" for name, versions in start.versions.items() for number in versions]
    logger.warning(
        "restored from %s: %s (--ncs starts without it)", start.source, ", ".join(restored) or "no models"
    )
    if new:
        logger.warning("new in the store since then, and served, too: %s", ", ".join(new))
    _tell_pinned(registry, start)


def _tell_named(registry: Registry, start: Start) -> None:
    left = [
        f"{name} {number}"
        for name, versions in start.versions.items()
        for number in versions
        if name not in registry.models or number not in registry.models[name].versions
    ]
    logger.warning(
        "the command line says which models are served; %s gives their workers and other settings%s",
        start.source,
        f", and has models that are not served now: {', '.join(left)}" if left else "",
    )
    _tell_pinned(registry, start)


def _tell_pinned(registry: Registry, start: Start) -> None:
    for name, model in registry.models.items():
        newest = max(model.versions, key=version_key)
        if model.default != newest and start.pinned(name) == model.default:
            logger.warning(
                "%s: %s stays the default, as it was set to be; there is %s", name, model.default, newest
            )


def _why_nothing(settings: ServerSettings) -> str:
    if settings.load_models.strip().lower() in ("", "none"):
        return "load_models=none, and nothing was registered before"
    return f"{settings.model_store} holds no archives"
