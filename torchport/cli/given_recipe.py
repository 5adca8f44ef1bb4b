"""Loads the recipe that a command names, with its parameters.

The name is a recipe's, a file's, or that of a model in the store. The parameters follow it on the
command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from torchport.errors import RecipeError
from torchport.recipe.contract import Recipe
from torchport.recipe.loading import load_recipe, recipe_paths
from torchport.recipe.parameters import from_arguments
from torchport.store.folders import Store

TAKES_PARAMETERS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Typer's settings for commands that pass unknown options to the recipe."""


def given_recipe(
    ctx: typer.Context, given: str, store: Store, cache: Path, *, as_trained: bool = True
) -> Recipe:
    """Load the recipe that a command names.

    A stage after training (`as_trained`) uses the parameters that the model was trained with, unless it
    is given others. A name that only the store knows is loaded with the recipe and parameters of its
    training.

    Raises:
        RecipeError: no such recipe, or parameters that it does not take.
    """
    if given.startswith("-"):
        raise RecipeError(f"{given!r} where a recipe is expected: name it first, then its parameters")
    options = [option for parameter in ctx.command.params for option in parameter.opts]
    arguments: dict[str, Any] = dict(from_arguments(ctx.args, options))
    is_file = given.endswith(".py") or "/" in given or "\\" in given
    if not is_file and given not in recipe_paths():
        made = _made_as(store, given)
        if made is not None:
            return load_recipe(made["recipe_file"], {**made["parameters"], **arguments}, cache)
    if arguments or not as_trained:
        return _load(ctx, given, arguments, cache)
    recipe = _load(ctx, given, {}, cache)
    record = store.build(recipe.name, recipe.version).training_record() or {}
    same_file = Path(record.get("recipe_file", recipe.path)).name == recipe.path.name
    if not same_file or record.get("parameters", recipe.parameters) == recipe.parameters:
        return recipe
    return load_recipe(given, record["parameters"], cache)


def _load(ctx: typer.Context, given: str, arguments: dict[str, Any], cache: Path) -> Recipe:
    try:
        return load_recipe(given, arguments, cache)
    except RecipeError as err:
        # An option of the command that was mistyped ends up among the recipe's parameters.
        if "no parameter" not in str(err):
            raise
        own = sorted(o for p in ctx.command.params for o in p.opts if o.startswith("--"))
        raise RecipeError(f"{err} (and torchport {ctx.command.name} itself takes {', '.join(own)})") from err


def _made_as(store: Store, name: str) -> dict[str, Any] | None:
    """Training record of a model's newest version; None without one."""
    for version in reversed(store.built_versions(name)):
        record = store.build(name, version).training_record()
        if record is not None and "recipe_file" in record:
            return record
    return None
