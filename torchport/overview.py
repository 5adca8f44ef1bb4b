"""The recipes that can be named, each with how far it has come in the store."""

from __future__ import annotations

import inspect

from torchport.errors import StaleError, TorchportError
from torchport.recipe_file import load_recipe, recipe_paths
from torchport.store import BuildFolder, Store, read_json


def overview(store: Store) -> list[dict[str, str]]:
    """One row per recipe, one that does not load saying why instead of its state; and one per model version
    of the store that came from a file elsewhere.
    """
    rows = []
    named = set()
    for name, path in sorted(recipe_paths().items()):
        row = {"recipe": name, "version": "", "task": "", "state": "", "metrics": ""}
        try:
            recipe = load_recipe(path)
        except TorchportError as err:
            rows.append(row | {"state": f"does not load: {err}"})
            continue
        folder = store.build(recipe.name, recipe.version)
        named.add(folder.path)
        task = (inspect.getdoc(recipe) or "").splitlines()[:1]
        rows.append(
            row
            | {
                "version": recipe.version,
                "task": "".join(task),
                "state": _state(store, folder),
                "metrics": _metrics(folder),
            }
        )
    for path in sorted((store.path / ".build").glob("*/*")):
        folder = store.build(path.parent.name, path.name)
        if path.is_dir() and folder.path not in named:
            rows.append(
                {
                    "recipe": folder.name,
                    "version": folder.version,
                    "task": "(a recipe file elsewhere)",
                    "state": _state(store, folder),
                    "metrics": _metrics(folder),
                }
            )
    return rows


def _metrics(folder: BuildFolder) -> str:
    training = folder.training_record() or {"metrics": {}}
    return ", ".join(f"{k} {v:.4g}" for k, v in training["metrics"].items())


def _state(store: Store, folder: BuildFolder) -> str:
    """The last stage that was done."""
    if (read_json(folder.serving) or {}).get("passed"):
        return "served and checked"
    if store.archive(folder.name, folder.version).is_file():
        return "packaged"
    certificate = folder.certificate()
    if certificate is not None:
        return "proven" if certificate["passed"] else "parity failed"
    try:
        folder.recorded_artifacts()
        return "exported"
    except StaleError:
        return "trained" if folder.training_record() else "-"
