"""Which archives of the store a name in `load_models` means.

named_archives("linear", store)              # ["linear-1.0.mar", "linear-2.0.mar"]
named_archives("linear@2.0", store)          # ["linear-2.0.mar"]
require_store(settings, is_named=True)       # refuses a store that is not there
require_named_archives(settings)             # refuses names that mean none
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torchport.errors import ModelsMissing
from torchport.server.settings.settings import ServerSettings
from torchport.store.folders import Store
from torchport_runtime.suggest import did_you_mean

_SHOWN = 10
"""Maximum number of names in a message; the nearest one is looked for among all."""


def parts_of(load_models: str) -> Iterator[tuple[str | None, str]]:
    """The entries of a list: the name to register under, if any, and what to register.

    >>> list(parts_of("linear, digits=digits-1.0.mar"))
    [(None, 'linear'), ('digits', 'digits-1.0.mar')]
    """
    for part in load_models.split(","):
        name, equals, url = part.strip().partition("=")
        if name or url:
            yield (name.strip(), url.strip()) if equals else (None, name)


def is_list(load_models: str) -> bool:
    """Whether models are named, in place of `all` or `none`."""
    return load_models.strip().lower() not in ("", "all", "none")


def named_archives(given: str, store: Path) -> list[str]:
    """File names of the archives that `given` means, oldest version first; empty if there are none.

    `given` is a file of the store or its path, a model's name, or `NAME@VERSION`. A URL stands for itself.
    """
    if "://" in given:
        return [given]
    path = Path(given)
    if path.parent != Path() and _resolved(path.parent) == _resolved(store):
        given = path.name
    if _is_file(store / given):
        return [given]
    name, _, version = given.partition("@")
    versions = Store(store).archives().get(name, {})
    if version:
        return [versions[version].name] if version in versions else []
    found = [archive.name for archive in versions.values()]
    # torch-model-archiver calls an archive NAME.mar, without a version.
    return [*found, *([f"{name}.mar"] if name and _is_file(store / f"{name}.mar") else [])]


def missing_archive(given: str, store: Path) -> str:
    """A message that says that `given` is not there, with the nearest name."""
    if not store.is_dir():
        return f"{given}: there is no model store {store}"
    archives = Store(store).archives()
    names = [*archives, *(path.name for path in Store(store).archive_files())]
    names += [f"{name}@{version}" for name, versions in archives.items() for version in versions]
    hint = did_you_mean(given, names)
    if not hint.startswith("did you mean"):
        shown = sorted(archives)[:_SHOWN]
        more = ", ..." if len(archives) > _SHOWN else ""
        hint = f"it holds {', '.join(shown)}{more}" if shown else "it holds no archives"
    return f"{given} is not in the store {store}: {hint}"


def require_store(settings: ServerSettings, *, is_named: bool) -> None:
    """Refuse to start without the store.

    `is_named` is whether the command line or the configuration names it; the default one may be missing if
    nothing is loaded from it.

    Raises:
        ModelsMissing: it is no folder.
    """
    store = settings.model_store
    if store.is_dir():
        return
    if is_named:
        raise ModelsMissing(f"there is no model store {store}: make the folder, or name another by --store")
    if is_list(settings.load_models) or settings.load_models.strip().lower() == "all":
        raise ModelsMissing(
            f"there is no model store {store}: name it with --store, make one with torchport ship, or "
            "say --models none"
        )


def require_named_archives(settings: ServerSettings) -> None:
    """Refuse to start without a model that `load_models` names.

    Raises:
        ModelsMissing: it is not there; the message has the nearest name.
    """
    store = settings.model_store
    if not is_list(settings.load_models):
        return
    wrong = [given for _, given in parts_of(settings.load_models) if not named_archives(given, store)]
    if wrong:
        raise ModelsMissing("; ".join(missing_archive(given, store) for given in wrong))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # A name that no file can have.
        return False


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return path
