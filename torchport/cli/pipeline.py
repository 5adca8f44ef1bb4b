"""The five stages of one recipe in their order: train, export, verify, package, check.

    shipped = ship(load_recipe("linear"), Store(Path("model_store")))
    shipped.checked[0].record["metrics"]

`torchport ship` and `torchport zoo` run it; each says in its own `run_stage` what is shown around a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torchport.export.exporting import ExportResult, export
from torchport.package.packaging import PackageResult, package
from torchport.recipe.contract import Recipe
from torchport.store.folders import Store
from torchport.targets.checking import CheckResult, check
from torchport.train.run import Progress, no_progress
from torchport.train.training import TrainingResult, train
from torchport.verify.verifying import ParityResult, verify

T = TypeVar("T")
Tell = Callable[[str], None]
"""Takes a message about what a stage does now."""


class RunStage(Protocol):
    """Runs one stage, giving it a place for its messages, and returns its result."""

    def __call__(self, name: str, stage: Callable[[Tell], T], /) -> T: ...


def run_quietly(name: str, stage: Callable[[Tell], T]) -> T:
    """Run a stage and show nothing."""
    return stage(lambda message: None)


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """Results of the stages; None for those after exports that failed parity."""

    trained: TrainingResult
    exported: ExportResult
    verified: ParityResult
    packaged: PackageResult | None = None
    checked: Sequence[CheckResult] = ()


def ship(
    recipe: Recipe,
    store: Store,
    *,
    seed: int = 0,
    weights: Path | None = None,
    force: bool = False,
    servers: Sequence[str] = ("torchport",),
    show: Progress[Any] = no_progress,
    run_stage: RunStage = run_quietly,
) -> Shipped:
    """Run every stage, and check the archive on each of the servers.

    Raises:
        TorchportError: as the stages.
    """
    folder = store.build(recipe.name, recipe.version)
    trained = run_stage(
        "train", lambda tell: train(recipe, folder, seed=seed, weights=weights, force=force, show=show)
    )
    exported = run_stage("export", lambda tell: export(recipe, folder, force=force, tell=tell))
    verified = run_stage("verify", lambda tell: verify(recipe, folder, force=force, tell=tell))
    if verified.failures:
        return Shipped(trained=trained, exported=exported, verified=verified)
    packaged = run_stage("package", lambda tell: package(recipe, store, force=force))

    def checking(server: str) -> Callable[[Tell], CheckResult]:
        return lambda tell: check(recipe, store, server=server, tell=tell)

    checked = [run_stage("check", checking(server)) for server in servers]
    return Shipped(trained=trained, exported=exported, verified=verified, packaged=packaged, checked=checked)
