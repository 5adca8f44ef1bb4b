"""What recipes become, kept in `.cache/test-builds` for the test processes of this run and of later ones.

    archive = kept_build(run_stages, load_recipe("linear"), Store(folder))

The stages run the first time; from then on the archive and the build folder are copies. A build is kept under
a digest of all that it is made from, the whole library included: after a change to any of it, the stages run
again. The folder may be deleted whenever no tests run.
"""

from __future__ import annotations

import inspect
import os
import platform
import shutil
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from filelock import FileLock, Timeout

import torchport
import torchport_runtime
from torchport.recipe.contract import Recipe
from torchport.recipe.loading import find_handler
from torchport.recipe.shipped import packaged_folder
from torchport.store.folders import Store
from torchport.store.hashing import sha256_file, sha256_json, sha256_tree

KEPT = Path(__file__).parent.parent / ".cache" / "test-builds"

KEPT_PER_MODEL = 2
"""Builds of one model version that stay: of more, the ones that were used last."""


def kept_build(
    stages: Callable[..., Path],
    recipe: Recipe,
    store: Store,
    *,
    seed: int = 0,
    weights: Path | None = None,
    kept: Path = KEPT,
) -> Path:
    """The archive, in `store` with its build folder, as `stages` makes it.

    A second process that wants the same build waits for the first one. A process that is killed leaves
    nothing that is taken for a build.
    """
    model = kept / f"{recipe.name}-{recipe.version}"
    made = model / _digest(stages, recipe, seed, weights)
    model.mkdir(parents=True, exist_ok=True)
    with _lock(made):
        if not made.is_dir():
            unfinished = _unfinished(made)
            shutil.rmtree(unfinished, ignore_errors=True)
            stages(recipe, Store(unfinished), seed=seed, weights=weights)
            unfinished.rename(made)
        os.utime(made)
        shutil.copytree(made, store.path, dirs_exist_ok=True)
    _remove_old(model)
    return store.archive(recipe.name, recipe.version)


def _digest(stages: Callable[..., Path], recipe: Recipe, seed: int, weights: Path | None) -> str:
    """SHA-256 over all that a build depends on."""
    return sha256_json(
        {
            "stages": inspect.getsource(stages),
            "recipe": dict(recipe.sources),
            "handler": sha256_file(find_handler(recipe)),
            "seed": seed,
            "weights": sha256_file(weights) if weights else None,
            "library": _library(),
            "environment": _environment(),
        }
    )


@cache
def _library() -> dict[str, dict[str, str]]:
    """Every file of it that is imported here, or copied into an archive."""
    folders = [Path(module.__file__ or "").parent for module in (torchport, torchport_runtime)]
    folders += [packaged_folder(name) for name in ("handlers", "deploy")]
    return {folder.name: sha256_tree(folder) for folder in folders}


@cache
def _environment() -> dict[str, str]:
    """Versions of everything that is installed, and what kind of machine this is."""
    versions = {found.name: found.version for found in distributions()}
    return versions | {"python": sys.version, "machine": f"{platform.system()} {platform.machine()}"}


def _unfinished(made: Path) -> Path:
    """Where a build is made and where it is removed: neither is done in one step."""
    return made.with_suffix(".unfinished")


def _lock(made: Path, timeout: float = -1) -> FileLock:
    return FileLock(made.with_suffix(".lock"), timeout=timeout)


def _remove_old(model: Path) -> None:
    """Remove the builds that were used longest ago, but none that another process is making or copying."""
    builds = [path for path in model.iterdir() if path.is_dir() and path.suffix != ".unfinished"]
    for old in sorted(builds, key=lambda path: path.stat().st_mtime)[:-KEPT_PER_MODEL]:
        try:
            with _lock(old, timeout=0):
                shutil.rmtree(old.rename(_unfinished(old)))
        except (Timeout, FileNotFoundError):
            continue
