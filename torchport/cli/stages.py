"""Runs one stage each and prints its line.

Each function returns whether there was work to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from torchport.cli import console as show
from torchport.recipe.contract import Recipe
from torchport.store.folders import BuildFolder, Store
from torchport.store.variants import Variant

if TYPE_CHECKING:
    from torchport.cli.pipeline import T, Tell
    from torchport.export.exporting import ExportResult
    from torchport.package.packaging import PackageResult
    from torchport.targets.checking import CheckResult
    from torchport.train.training import TrainingResult
    from torchport.verify.verifying import ParityResult


def train(
    recipe: Recipe, store: Store, seed: int, weights: Path | None, force: bool, *, keep: bool = False
) -> bool:
    from torchport.train.training import keep_weights
    from torchport.train.training import train as run

    folder = store.build(recipe.name, recipe.version)
    if keep:
        result = keep_weights(recipe, folder)
    else:
        result = run(recipe, folder, seed=seed, weights=weights, force=force, show=show.progress)
    _show_training(result)
    return result.done


def _show_training(result: TrainingResult) -> None:
    """Print the line of `train`."""
    numbers = ", ".join(f"{k} {v:.5g}" for k, v in result.record["metrics"].items())
    source = result.record.get("weights_from")
    detail = numbers or ("weights as given" if source == "a file" else "trained")
    if source == "build":
        detail = f"no training and no --weights: as build() gives it, seed {result.record['seed']}"
    show.stage("train", result.done, result.why, detail)


def export(recipe: Recipe, store: Store, force: bool) -> bool:
    from torchport.export.exporting import export as run

    with show.working("exporting") as tell:
        result = run(recipe, store.build(recipe.name, recipe.version), force=force, tell=tell)
    _show_export(result)
    return result.done


def _show_export(result: ExportResult) -> None:
    """Print the line of `export`, and one for each optional variant that failed."""
    from torchport.model.exported import failed_variants

    artifacts = result.record["artifacts"]
    sizes = [f"{n} {decimal(e['bytes'])}" for n, e in artifacts.items() if "bytes" in e]
    show.stage("export", result.done, result.why, ", ".join(sizes))
    for variant, why in failed_variants(result.record).items():
        show.say(f"  without {variant}: {why}")


def verify(recipe: Recipe, store: Store, force: bool, devices: list[str] | None) -> bool:
    from torchport.verify.verifying import verify as run

    folder = store.build(recipe.name, recipe.version)
    with show.working("verifying") as tell:
        result = run(recipe, folder, devices=devices, force=force, tell=tell)
    _show_parity(recipe, folder, result)
    return result.done


def _show_parity(recipe: Recipe, folder: BuildFolder, result: ParityResult) -> None:
    """Print the certificate's table and the line of `verify`.

    Raises:
        ParityError: the exports did not pass.
    """
    from torchport.errors import ParityError

    if result.done:
        show.parity(result.certificate)
        show.say(f"the report: {folder.report}")
    if result.failures:
        shown = "\n  ".join(result.failures[:20])
        more = f"\n  and {len(result.failures) - 20} more in parity.json" if len(result.failures) > 20 else ""
        raise ParityError(f"{recipe.name} {recipe.version} did not pass parity:\n  {shown}{more}")
    results = result.certificate["results"]
    failed = sorted({str(Variant.of(r)) for r in results if not r["passed"]})
    but = f", but not {', '.join(failed)}, which is optional and will not ship" if failed else ""
    show.stage("verify", result.done, result.why, f"every export computes what was trained{but}")


def quantize(recipe: Recipe, store: Store, max_drop: float, force: bool) -> bool:
    from torchport.optimize.quantize.quantizing import quantize as run
    from torchport.optimize.quantize.quantizing import require

    folder = store.build(recipe.name, recipe.version)
    with show.working("quantising") as tell:
        result = run(recipe, folder, max_drop=max_drop, force=force, tell=tell)
    show.quantization(result.report)
    certificate = require(result).certificate or {}
    left = certificate["left_in_float32"]
    chosen = next(row for row in result.report["tried"] if row["chosen"])
    floats = f", {len(left)} of {certificate['layers']} layers in float32" if left else ""
    detail = f"{certificate['method']}{floats}: {chosen['speed']:.2f} times float32's throughput"
    show.stage("quantize", result.done, result.why, detail)
    show.say("  torchport package puts it into the archive; it serves there with precision int8")
    return result.done


def prove_store(store: Store, force: bool, timeout_s: float | None = None) -> None:
    """Verify every archive of a store here, each in a child process."""
    from torchport.errors import ParityError, TorchportError
    from torchport.verify.local.process import TIMEOUT_S, verify_in_child

    archives = store.archive_files()
    if not archives:
        raise TorchportError(f"no archive in {store.path}: name a recipe, or another --store")
    failed = []
    for path in archives:
        try:
            with show.working(f"proving {path.name}") as tell:
                result = verify_in_child(path, force=force, timeout_s=timeout_s or TIMEOUT_S, tell=tell)
        except (TorchportError, OSError) as err:
            show.problem(str(err))
            failed.append(path.name)
            continue
        show.local_parity(path, result)
        if not result.record["passed"]:
            failed.append(path.name)
    if failed:
        raise ParityError(f"not proven on this machine: {', '.join(failed)}")


def package(
    recipe: Recipe,
    store: Store,
    backends: list[str] | None,
    force: bool,
    precision: str | None = None,
    shadow: str | None = None,
) -> bool:
    from torchport.package.packaging import package as run

    result = run(recipe, store, backends=backends, precision=precision, shadow=shadow, force=force)
    _show_package(recipe, result)
    return result.done


def _show_package(recipe: Recipe, result: PackageResult) -> None:
    """Print the line of `package`.

    It names what differs from the previous archive and from the tuning.
    """
    size = decimal(result.path.stat().st_size)
    why = "packaged" if result.done else "the same bytes are there"
    show.stage("package", result.done, why, f"{result.path} {size}, sha256 {result.sha256[:12]}")
    if result.changed:
        show.say(f"  the archive before it had {', '.join(result.changed)}")
    if result.tuning.configuration is not None:
        show.say(f"  as tuned: {result.tuning.configuration}")
    if result.tuning.why_not:
        show.say(f"  without tuning.json: {result.tuning.why_not} (torchport tune {recipe.name})")


def check(
    recipe: Recipe,
    store: Store,
    backend: str | None,
    server: str = "torchport",
    precision: str | None = None,
) -> None:
    from torchport.targets.checking import check as run

    results = []
    for one in _servers(server):
        with show.working("serving") as tell:
            result = run(recipe, store, backend=backend, precision=precision, server=one, tell=tell)
        _show_check(result)
        results.append(result)
    _show_answers(recipe, results)


def _servers(server: str) -> list[str]:
    """The servers that `--server` names."""
    from torchport.targets.checking import SERVERS

    return list(SERVERS) if server == "all" else [server]


def _show_check(result: CheckResult) -> None:
    """Print the line of `check` if the server's answers match the model's."""
    if result.failures:
        return
    record = result.record
    numbers = "".join(f", served {k} {v:.5g}" for k, v in record["metrics"].items())
    detail = f"{record['requests_compared']} answers as in process{numbers}"
    ran = "" if record["precision"] == "float32" else f", {record['precision']}"
    show.stage("check", True, f"{record['server']}, {record['backend']}{ran}", detail)


def _show_answers(recipe: Recipe, results: Sequence[CheckResult]) -> None:
    """Print the recipe's requests with their answers.

    Raises:
        CheckError: a server answered otherwise than the model in process, or misses a goal.
    """
    from torchport.recipe.requests import recipe_requests
    from torchport.targets.checking import require

    for result in results:
        if result.failures:
            require(result)
    for request, answer in zip(recipe_requests(recipe), results[0].answers, strict=True):
        body = request.content
        sent = body.decode() if request.body is None else f"{request.content_type} of {len(body)} bytes"
        params = "".join(f", {name}={value}" for name, value in request.params.items())
        show.exchange(sent + params, answer)
    for result in results:
        require(result)


def ship(recipe: Recipe, store: Store, seed: int, weights: Path | None, force: bool, server: str) -> None:
    """Run all five stages, and print each one's line and a server's answers."""
    from torchport.cli.pipeline import ship as run

    folder = store.build(recipe.name, recipe.version)
    doing = {"export": "exporting", "verify": "verifying", "check": "serving"}
    shown: dict[str, Callable[[Any], None]] = {
        "train": _show_training,
        "export": _show_export,
        "verify": partial(_show_parity, recipe, folder),
        "package": partial(_show_package, recipe),
        "check": _show_check,
    }
    worked: list[bool] = []

    def run_stage(name: str, stage: Callable[[Tell], T]) -> T:
        if name == "check" and worked == [False] * 4:
            show.say("nothing had to be done again; asking once more")
        with show.working(doing[name]) if name in doing else nullcontext(_untold) as tell:
            result = stage(tell)
        shown[name](result)
        worked.append(getattr(result, "done", True))
        return result

    shipped = run(
        recipe,
        store,
        seed=seed,
        weights=weights,
        force=force,
        servers=_servers(server),
        show=show.progress,
        run_stage=run_stage,
    )
    _show_answers(recipe, shipped.checked)


def _untold(message: str) -> None:
    """Drop a message of a stage that shows its own progress, or none."""
