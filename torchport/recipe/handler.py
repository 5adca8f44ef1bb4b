"""Loads a recipe's handler in process, with signature and without model."""

from __future__ import annotations

import inspect
from pathlib import Path

from torchport.errors import RecipeError
from torchport.recipe.contract import Recipe
from torchport.recipe.loading import find_handler
from torchport.recipe.user_code import execute, running
from torchport_runtime import Handler


def handler_class(path: Path) -> type[Handler]:
    """The one class that the handler's file defines.

    Raises:
        RecipeError: the file does not load, or defines no class or two (TorchServe wants exactly one).
    """
    name = f"torchport_handler_{path.stem}"
    module = execute(path, name)
    classes = [v for v in vars(module).values() if inspect.isclass(v) and v.__module__ == name]
    if len(classes) != 1 or not issubclass(classes[0], Handler):
        names = ", ".join(c.__name__ for c in classes) or "none"
        raise RecipeError(
            f"{path.name}: exactly one class, a subclass of torchport_runtime.Handler, is expected "
            f"(TorchServe's loader wants one), found {names}"
        )
    found: type[Handler] = classes[0]
    return found


def described_handler(recipe: Recipe, folder: Path) -> Handler:
    """The recipe's handler with a build folder's signature, options and assets.

    It has no model yet.

    Raises:
        RecipeError: the handler does not load, or its `setup` fails.
    """
    path = find_handler(recipe)
    with running(path, "setup"):
        handler = handler_class(path)()
        handler.describe(folder, dict(recipe.handler_options))
    return handler
