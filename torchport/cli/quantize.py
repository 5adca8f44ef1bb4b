"""`torchport quantize RECIPE --max-drop 0.5%`: INT8 graphs that hold their metrics, or none."""

from __future__ import annotations

from typing import Annotated

import typer

from torchport.cli import stages
from torchport.cli.given_recipe import given_recipe
from torchport.cli.options import CACHE, STORE, CacheOpt, ForceOpt, RecipeArg, StoreOpt
from torchport.store.folders import Store


def quantize(
    ctx: typer.Context,
    recipe: RecipeArg,
    max_drop: Annotated[
        str, typer.Option("--max-drop", help="How much worse a metric may be: 0.5% is 0.005 of it.")
    ] = "0.5%",
    force: ForceOpt = False,
    store: StoreOpt = STORE,
    cache: CacheOpt = CACHE,
) -> None:
    """Make INT8 graphs whose held-out metrics hold, the fastest that do: int8.json. Exit 1 if none do."""
    from torchport.recipe.gate import parse_max_drop

    target, drop = Store(store), parse_max_drop(max_drop)
    stages.quantize(given_recipe(ctx, recipe, target, cache), target, drop, force)
