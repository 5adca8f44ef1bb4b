"""`torchport tune RECIPE --slo p99=50ms`: the fastest verified configuration on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from torchport.cli import console as show
from torchport.cli import stages
from torchport.cli.given_recipe import given_recipe
from torchport.cli.options import CACHE, STORE, CacheOpt, ForceOpt, RecipeArg, StoreOpt
from torchport.optimize.tune.slo import PERCENTILES, Slo, parse_duration
from torchport.store.folders import Store

if TYPE_CHECKING:
    from torchport.optimize.tune.search import Outcome


def tune(
    ctx: typer.Context,
    recipe: RecipeArg,
    slo: Annotated[
        list[str] | None,
        typer.Option("--slo", help="p99=50ms, p95=, p50=, throughput>=100/s; may be repeated."),
    ] = None,
    budget: Annotated[str, typer.Option("--budget", help="The time to measure for: 90s, 5m.")] = "5m",
    backend: Annotated[
        list[str] | None, typer.Option("--backend", help="Only this one; may be repeated.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option("--precision", help="Only this one; int8 may then be chosen.")
    ] = None,
    allow_int8: Annotated[
        bool, typer.Option("--allow-int8", help="INT8, which changes answers, may be chosen too.")
    ] = False,
    reset: Annotated[
        bool, typer.Option("--reset", help="Forget the tuning; package as the recipe says.")
    ] = False,
    force: ForceOpt = False,
    store: StoreOpt = STORE,
    cache: CacheOpt = CACHE,
) -> None:
    """Measure how a proven model is served best here, and package it so. Exit 1 if nothing is in the SLO."""
    from torchport.optimize.tune import tuning
    from torchport.package.configuration import Configuration
    from torchport.package.tuning_record import REPORT

    objective, seconds = Slo.parse(slo or []), parse_duration(budget)
    target = Store(store)
    loaded = given_recipe(ctx, recipe, target, cache)
    if reset:
        there = tuning.reset(loaded, target)
        show.stage("tune", there, "--reset", "the tuning is removed" if there else "there is no tuning")
        stages.package(loaded, target, None, False)
        return
    with show.working("measuring") as tell:
        result = tuning.tune(
            loaded,
            target,
            slo=objective,
            budget_s=seconds,
            backends=backend or [],
            precisions=precision or [],
            allow_int8=allow_int8,
            force=force,
            tell=tell,
        )
    if result.outcome is not None:
        _table(result.outcome)
    record = tuning.require(result).record
    folder = target.build(loaded.name, loaded.version)
    chosen = Configuration(**record["chosen"])
    stays = "the default stays: " if record["chosen"] == record["default"] else ""
    show.stage("tune", result.done, result.why, f"{stays}{chosen}: {record['why']}")
    show.say(f"the picture: {folder.path / REPORT}")
    packaged = stages.package(loaded, target, None, False)
    if result.done or packaged:
        stages.check(loaded, target, None)


def _table(outcome: Outcome) -> None:
    """Print a tuning's results: front, default, finalists.

    They include the best of those only shown. Refused configurations are printed too.
    """
    space, slo = outcome.space, outcome.slo
    finalists = dict.fromkeys(p.configuration for p in outcome.points if p.rounds)
    others = [c for c in outcome.measured() if c.kind not in space.choosable and c not in finalists]
    shown_only = sorted(others, key=outcome.order)[:1]
    best = [point for c in [*finalists, *shown_only] if (point := outcome.nearest_of(c))]
    front = outcome.front()
    shown = sorted({id(p): p for p in [*best, *front]}.values(), key=lambda p: -p.measured.per_second)
    table = Table(
        title=f"{len(outcome.measured())} configurations on {space.cores} cores; SLO {slo}; "
        "client and server share the machine",
        title_justify="left",
        box=SIMPLE,
    )
    for column in ("configuration", "connections", "answers/s", "p50 ms", "p95 ms", "p99 ms", "rounds", ""):
        table.add_column(column, justify="left" if column in ("configuration", "") else "right")
    for point in shown:
        measured, configuration = point.measured, point.configuration
        marks = [
            *(["[bold green]chosen[/]"] if configuration == outcome.chosen and point in best else []),
            *(["default"] if configuration == space.default and point in best else []),
            *(["front"] if point in front else []),
            *([] if slo.met(measured) else ["[red]not within the SLO[/]"]),
            *([] if configuration.kind in space.choosable else ["[yellow]only shown[/]"]),
        ]
        table.add_row(
            str(configuration),
            str(point.connections),
            f"{measured.per_second:.1f}",
            *(f"{measured.latency_ms[name]:.2f}" for name in PERCENTILES),
            str(len(point.rounds) or "search"),
            ", ".join(marks),
        )
    show.out.print(table)
    for name, why in space.refused.items():
        show.say(f"  refused: {name}: {why}")
    for name, why in outcome.failed.items():
        show.say(f"  failed: {name}: {why}")
    if outcome.skipped:
        show.say(f"  {len(outcome.skipped)} more were not measured: no time was left (--budget)")
