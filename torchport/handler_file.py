"""Loads a recipe's handler in process, without a model: enough to decode requests and encode answers."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path

from torchport.errors import RecipeError
from torchport.recipe import Recipe
from torchport.recipe_file import find_handler
from torchport.user_code import running
from torchport_runtime import Handler


def handler_class(path: Path) -> type[Handler]:
    """The one class that the handler's file defines.

    Raises:
        RecipeError: the file does not load, or defines no class or two (TorchServe wants exactly one).
    """
    name = f"torchport_handler_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with running(path, "import"):
        spec.loader.exec_module(module)
    classes = [v for v in vars(module).values() if inspect.isclass(v) and v.__module__ == name]
    if len(classes) != 1 or not issubclass(classes[0], Handler):
        names = ", ".join(c.__name__ for c in classes) or "none"
        raise RecipeError(
            f"{path.name}: exactly one class, a subclass of torchport_runtime.Handler, is expected "
            f"(TorchServe's loader wants one), found {names}"
        )
    found: type[Handler] = classes[0]
    return found


def load_handler(recipe: Recipe, folder: Path) -> Handler:
    """The recipe's handler with signature, options and assets read from a build folder.

    Raises:
        RecipeError: the handler does not load, or its `setup` fails.
    """
    path = find_handler(recipe)
    with running(path, "setup"):
        handler = handler_class(path)()
        handler.describe(folder, dict(recipe.handler_options))
    return handler
