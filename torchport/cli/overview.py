"""Lists the recipes that can be named, each with its state."""

from __future__ import annotations

from torchport.errors import MissingParameter, StaleError, TorchportError
from torchport.recipe.contract import Recipe
from torchport.recipe.loading import load_recipe, recipe_paths
from torchport.store.folders import BuildFolder, Store
from torchport.store.hashing import sha256_file
from torchport.store.serving_record import read_records


def overview(store: Store) -> list[dict[str, str]]:
    """One row per recipe, and one per other model version of the store.

    A recipe that does not load has the reason in place of its state. The other model versions came from
    a file elsewhere, or from a recipe that makes many models.
    """
    rows = []
    named = set()
    for name, path in sorted(recipe_paths().items()):
        row = dict.fromkeys(("version", "task", "parameters", "state", "metrics"), "") | {"recipe": name}
        try:
            recipe = load_recipe(path)
        except MissingParameter as err:
            rows.append(row | {"task": err.task, "state": f"needs {', '.join(err.options)}"})
            continue
        except TorchportError as err:
            rows.append(row | {"state": f"does not load: {err}"})
            continue
        folder = store.build(recipe.name, recipe.version)
        named.add(folder.path)
        takes = [f"--{name.replace('_', '-')} {value}" for name, value in recipe.parameters.items()]
        rows.append(row | {"task": recipe.task, "parameters": " ".join(takes)} | _row(store, folder, recipe))
    for path in sorted((store.path / ".build").glob("*/*")):
        folder = store.build(path.parent.name, path.name)
        if path.is_dir() and folder.path not in named:
            task = (folder.training_record() or {}).get("task", "(a recipe file elsewhere)")
            rows.append({"recipe": folder.name, "task": task, "parameters": ""} | _row(store, folder))
    return rows


def _row(store: Store, folder: BuildFolder, recipe: Recipe | None = None) -> dict[str, str]:
    state = _state(store, folder)
    before = (folder.training_record() or {"inputs": {}})["inputs"].get("sources", {})
    if recipe is not None and before:
        now = recipe.sources
        if {n: s for n, s in now.items() if n != "(parameters)"} != {
            n: s for n, s in before.items() if n != "(parameters)"
        }:
            state += ", recipe changed since"
    return {"version": folder.version, "state": state, "metrics": _metrics(folder)}


def _metrics(folder: BuildFolder) -> str:
    """The held-out metrics as served, with their goals.

    Before the model was served, they are those of training.
    """
    served = (read_records(folder) or [{}])[-1]
    if served.get("metrics"):
        goals = served.get("goals", {})
        return ", ".join(
            f"{k} {v:.4g}" + (f" (goal {goals[k]})" if k in goals else "")
            for k, v in served["metrics"].items()
        )
    training = folder.training_record() or {"metrics": {}}
    return ", ".join(f"{k} {v:.4g}" for k, v in training["metrics"].items())


def _state(store: Store, folder: BuildFolder) -> str:
    """The state of a model version: its last completed stage."""
    archive = store.archive(folder.name, folder.version)
    records = read_records(folder) if archive.is_file() else []
    if records and records[-1]["archive_sha256"] != sha256_file(archive):
        records = []  # Of an archive that was there before.
    if records and not all(record["passed"] for record in records):
        failed = ", ".join(record["server"] for record in records if not record["passed"])
        return f"packaged, failed when served by {failed}"
    if records:
        return "served, goal missed" if any(r.get("missed") for r in records) else "served and checked"
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
