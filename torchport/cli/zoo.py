"""Ships a list of recipes and gives a table of the results.

    rows = ship_all(read_list(Path("export/zoo.yaml")), Store(Path("model_store")))
    all(row.passed for row in rows)

A recipe that fails does not stop the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from torchport.cli.pipeline import T, Tell, ship
from torchport.errors import RecipeError, TorchportError
from torchport.model.exported import not_exported
from torchport.package.packaging import PackageResult
from torchport.recipe.contract import Recipe
from torchport.recipe.loading import load_recipe
from torchport.store.folders import BuildFolder, Store
from torchport.train.run import Progress, no_progress
from torchport.verify.verifying import ParityResult
from torchport_runtime.suggest import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One recipe of a list, with its parameters and optional weights."""

    recipe: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None


@dataclass(kw_only=True)
class Row:
    """What became of one recipe. `seconds` by stage; `metrics` as recomputed over HTTP."""

    recipe: str
    task: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    goals: Mapping[str, str] = field(default_factory=dict)
    exported: Mapping[str, str] = field(default_factory=dict)
    """By backend: "passed", or why not."""
    worst_error_to_bound: float = 0.0
    archive_bytes: int = 0
    answers: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    problem: str = ""
    """Why the road ended, or which goals were missed; empty where all is well."""

    @property
    def passed(self) -> bool:
        return not self.problem


def read_list(path: Path) -> list[Entry]:
    """Entries of a YAML list: `recipe`, and `parameters` and `weights` where needed.

    Raises:
        RecipeError: not such a list.
    """
    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise RecipeError(f"{path}: not a readable list of recipes: {err}") from err
    if not isinstance(listed, list) or not all(isinstance(e, dict) and "recipe" in e for e in listed):
        raise RecipeError(f"{path}: a list of entries such as '- recipe: linear' is expected")
    known = ("recipe", "parameters", "weights")
    entries = []
    for number, entry in enumerate(listed):
        for key in entry:
            if key not in known:
                raise RecipeError(f"{path}, entry {number}: {key!r}: {did_you_mean(str(key), known)}")
        weights = entry.get("weights")
        entries.append(
            Entry(
                recipe=str(entry["recipe"]),
                parameters=entry.get("parameters") or {},
                weights=Path(weights) if weights else None,
            )
        )
    return entries


def ship_all(
    entries: Iterable[Entry],
    store: Store,
    *,
    seed: int = 0,
    cache: Path = Path(".cache"),
    show: Progress[Any] = no_progress,
    tell: Tell = lambda message: None,
) -> Iterator[Row]:
    """Ship each entry of a list; yields its row when it ends."""
    loads = []
    for entry in entries:
        try:
            load_recipe(entry.recipe, entry.parameters, cache)
            loads.append(entry)
        except TorchportError as err:  # Told before the others begin, which may take hours.
            yield Row(recipe=entry.recipe, problem=str(err))
    for entry in loads:
        row = Row(recipe=entry.recipe)
        try:
            _ship(entry, row, store, seed, cache, show, tell)
        except TorchportError as err:
            row.problem = str(err)
        yield row


def _ship(
    entry: Entry,
    row: Row,
    store: Store,
    seed: int,
    cache: Path,
    show: Progress[Any],
    tell: Tell,
) -> None:
    """Ship one recipe, and fill its row as far as the stages come."""
    recipe = load_recipe(entry.recipe, entry.parameters, cache)
    row.task, row.goals = recipe.task, recipe.goals

    def timed(name: str, stage: Callable[[Tell], T]) -> T:
        tell(f"{entry.recipe}: {name}")
        started = time.monotonic()
        result = stage(tell)
        row.seconds[name] = time.monotonic() - started
        if isinstance(result, ParityResult):
            _add_parity(row, recipe, store.build(recipe.name, recipe.version), result.certificate)
        if isinstance(result, PackageResult):
            row.archive_bytes = result.path.stat().st_size
        return result

    shipped = ship(recipe, store, seed=seed, weights=entry.weights, show=show, run_stage=timed)
    for checked in shipped.checked:
        row.metrics = checked.record["metrics"]
        row.answers = checked.record["requests_compared"] + checked.record["heldout_answers"]
        row.problem = "; ".join([*checked.failures, *checked.missed][:3])


def _add_parity(row: Row, recipe: Recipe, folder: BuildFolder, certificate: Mapping[str, Any]) -> None:
    """Fill in which variants were exported and passed."""
    row.exported = dict.fromkeys(recipe.backends, "passed") | not_exported(folder)
    for result in certificate["results"]:
        if not result["passed"]:
            row.exported = {**row.exported, result["backend"]: "failed parity"}
        row.worst_error_to_bound = max(row.worst_error_to_bound, result["worst_error_to_bound"])
    row.problem = "; ".join(certificate["failures"][:3])
