"""Picks up what the store holds now: new archives, new versions and changed files, without a restart.

    reloaded = await reload(registry)                    # as the server was started
    reloaded = await reload(registry, ["linear"])        # one model, whatever it was started with

What is new is warm before it gets requests; what it takes the place of answers what waits for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torchport.server.errors import ApiError, ArchiveNotFound, InternalError, InvalidRequest
from torchport.server.models.management import set_default, unregister
from torchport.server.models.named_archives import missing_archive, named_archives
from torchport.server.models.registration import Registration
from torchport.server.models.registry import Registry
from torchport.server.models.startup import startup_registrations
from torchport.server.models.version import ModelVersion
from torchport.store.folders import version_key

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Reloaded:
    """What a reload did: versions as `linear 2.0`, and the reasons of archives that are not served."""

    loaded: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    default: list[str] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = {
            "loaded": self.loaded,
            "replaced": self.replaced,
            "now the default": self.default,
            "retired": self.retired,
            "failed": [f"{url}: {reason}" for url, reason in self.failed.items()],
        }
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names) or "no news"


async def reload(
    registry: Registry, names: Sequence[str] = (), *, retire: bool = False, skip: Sequence[str] = ()
) -> Reloaded:
    """Serve what is new in the store. One reload runs at a time.

    Args:
        names: as in `load_models`; none for what the server was started with.
        retire: whether the version that a newer one takes the default from is removed, once it has answered
            what waits for it.
        skip: file names of archives that are left alone.

    Raises:
        ArchiveNotFound: a name is neither in the store nor of a registered model.
        InvalidRequest: a name is a URL.
    """
    async with registry.reloading:
        done = Reloaded()
        asked = _asked(registry, names)
        store = registry.settings.model_store
        models = {name.partition("@")[0] for name in names}
        for version in list(registry.versions()):
            url = version.model.url
            wanted = not names or version.model.name in models or url in {entry.url for entry in asked}
            if wanted and url not in skip and registry.known.has_changed(store, url):
                await _replace(registry, version, done)
        served = {(version.model.url, version.model.name) for version in registry.versions()}
        urls = {url for url, _ in served}
        for entry in asked:
            is_served = (entry.url, entry.model_name) in served if entry.model_name else entry.url in urls
            is_removed = not names and registry.known.holds(store, entry.url)
            if not is_served and not is_removed and entry.url not in skip:
                await _load(registry, entry, done, retire=retire)
        logger.log(logging.ERROR if done.failed else logging.INFO, "reload of %s: %s", store, done)
        return done


def require_no_failure(reloaded: Reloaded) -> Reloaded:
    """The result, if every archive is served.

    Raises:
        InternalError: one is not; the message has all that was done.
    """
    if reloaded.failed:
        raise InternalError(f"not everything was picked up. {reloaded}")
    return reloaded


def _asked(registry: Registry, names: Sequence[str]) -> list[Registration]:
    if not names:
        return startup_registrations(registry.settings)
    store = registry.settings.model_store
    for name in names:
        if "://" in name:
            raise InvalidRequest(f"{name}: a reload takes names from the store, and no URLs")
        if not named_archives(name, store) and name not in registry.models:
            raise ArchiveNotFound(missing_archive(name, store))
    settings = replace(registry.settings, load_models=",".join(names))
    found = startup_registrations(settings)
    return [entry for entry in found if entry.url not in registry.models]


async def _replace(registry: Registry, version: ModelVersion, done: Reloaded) -> None:
    """Serve a changed archive in place of the version that was made of it."""
    model, url = version.model, version.model.url
    identity = registry.known.identity(registry.settings.model_store, url)
    try:
        await registry.replace(version)
    except ApiError as err:
        done.failed[url] = str(err)
        return
    registry.known.note(url, identity)
    done.replaced.append(f"{model.name} {model.version}")


async def _load(registry: Registry, asked: Registration, done: Reloaded, *, retire: bool) -> None:
    """Register a new archive, with as many workers as the version that it follows."""
    identity = registry.known.identity(registry.settings.model_store, asked.url)
    before = {name: (model.default, list(model.versions)) for name, model in registry.models.items()}
    there = set(registry.versions())
    try:
        await registry.register(replace(asked, synchronous=True, at_startup=False))
        registry.known.note(asked.url, identity)
        for version in [v for v in registry.versions() if v not in there and v.model.url == asked.url]:
            done.loaded.append(f"{version.model.name} {version.model.version}")
            default, others = before.get(version.model.name, ("", []))
            await _take_over(registry, version, default, others, done, retire=retire)
    except ApiError as err:
        done.failed[asked.url] = str(err)


async def _take_over(
    registry: Registry,
    version: ModelVersion,
    default: str,
    others: Sequence[str],
    done: Reloaded,
    *,
    retire: bool,
) -> None:
    """Make a loaded version the default one, unless a newer one is, or somebody chose an older one.

    It gets at least the workers of the version whose requests it takes.
    """
    name, number = version.model.name, version.model.version
    if default:
        if default == max([*others, number], key=version_key):
            return
        if default != max(others, key=version_key):
            logger.warning(
                "%s: %s stays the default, as it was set to be; there is %s", name, default, number
            )
            return
        old = registry.find(name, default).settings
        if old.min_workers > version.settings.min_workers:
            version.scale(old.min_workers, max(old.max_workers, version.settings.max_workers))
            await version.pool.wait_ready(old.min_workers, version.settings.startup_timeout)
        await set_default(registry, name, number)
        if retire:
            await unregister(registry, name, default)
            done.retired.append(f"{name} {default}")
    done.default.append(f"{name} {number}")
