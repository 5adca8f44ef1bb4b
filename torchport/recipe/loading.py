"""Finds a recipe by name or path, loads it, and checks it.

recipe = load_recipe("linear")            # export/linear.py here, or one of torchport's own
recipe = load_recipe("mine/spam.py")
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from torchport.errors import RecipeError
from torchport.recipe.checks import check_class, check_recipe, refuse_shadowing
from torchport.recipe.contract import Recipe
from torchport.recipe.parameters import configure
from torchport.recipe.shipped import packaged_folder
from torchport.recipe.user_code import execute, importing_from, running
from torchport.store.hashing import sha256_file, sha256_json
from torchport_runtime.suggest import did_you_mean


def recipe_paths() -> dict[str, Path]:
    """Recipes that can be named, by name.

    They are torchport's own and those in `export/` here, which take precedence.
    """
    folders = (packaged_folder("recipes"), Path("export"))
    return {
        path.stem: path
        for folder in folders
        for path in sorted(folder.glob("*.py"))
        if not path.name.startswith("_")
    }


def find_recipe(given: str | Path) -> Path:
    """The file of a recipe given by name or by path.

    Raises:
        RecipeError: no such recipe.
    """
    text = str(given)
    if text.endswith(".py") or "/" in text or "\\" in text:
        path = Path(text)
        if not path.is_file():
            raise RecipeError(f"no recipe file {text!r}: torchport init NAME writes one to start from")
        return path
    known = recipe_paths()
    if text not in known:
        if Path(f"{text}.py").is_file():
            raise RecipeError(
                f"no recipe {text!r} in export/ or in torchport, but {text}.py is here: name it so"
            )
        raise RecipeError(f"no recipe {text!r} in export/ or in torchport: {did_you_mean(text, known)}")
    return known[text]


def load_recipe(
    given: str | Path, parameters: Mapping[str, Any] = MappingProxyType({}), cache: Path = Path(".cache")
) -> Recipe:
    """Load a recipe, give it its parameters and check it.

    `parameters` are the arguments of its `configure`; `cache` is the folder for its data sets.

    Raises:
        RecipeError: not found, a syntax error, an error on import, no class or two, or a breach of the
            contract; the message says what was given, what was expected and what to do.
    """
    path = find_recipe(given).resolve()
    refuse_shadowing(path.stem, f"the recipe file {path.name}", path)
    if (packaged_folder("handlers") / path.name).is_file():
        raise RecipeError(
            f"the recipe file {path.name} is named like a handler, and would be taken for it: "
            f"choose another name, such as {path.stem}_recipe.py"
        )
    module = _execute(path)
    sources = _sources(path, module)
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Recipe) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        names = ", ".join(c.__name__ for c in classes) or "none"
        raise RecipeError(f"{path.name}: one class that subclasses Recipe is expected, found {names}")
    recipe_class = classes[0]
    where = f"{path.name}, class {recipe_class.__name__}"
    check_class(recipe_class, where)
    with running(path, recipe_class.__name__):
        recipe: Recipe = recipe_class()
        recipe.path = path
        recipe.cache = cache
        recipe.parameters = configure(recipe, parameters)
    check_recipe(recipe, where)
    recipe.sources = sources
    if recipe.parameters:
        recipe.sources["(parameters)"] = sha256_json(recipe.parameters)
    with running(path, "dependencies"):
        files = sorted(recipe.dependencies())
    if files:
        recipe.sources["(dependencies)"] = sha256_json([sha256_file(file) for file in files])
    return recipe


def find_handler(recipe: Recipe) -> Path:
    """The file of the recipe's handler.

    It is next to the recipe, in a `handlers/` next to the recipe's folder, or one of torchport's.

    Raises:
        RecipeError: no such handler, or its name would shadow a package inside a server's worker.
    """
    stem = recipe.handler.removesuffix(".py")
    shipped = packaged_folder("handlers")
    folders = (recipe.path.parent, recipe.path.parent.parent / "handlers", shipped)
    for folder in folders:
        path = folder / f"{stem}.py"
        if path.is_file():
            refuse_shadowing(path.stem, f"the handler {path.name}", path)
            return path
    known = {path.stem for path in shipped.glob("*.py") if not path.name.startswith("_")}
    raise RecipeError(
        f"{recipe.path.name}: no handler {recipe.handler!r} beside it or in torchport: "
        f"{did_you_mean(stem, known)}"
    )


def _execute(path: Path) -> ModuleType:
    # The module's name goes into exported artifacts, so it must not depend on the folder.
    name = f"torchport_recipe_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}"
    with importing_from(path.parent):
        return execute(path, name)


def _sources(path: Path, module: ModuleType) -> dict[str, str]:
    """SHA-256 by relative path: the recipe, and its imports from its folder."""
    files: dict[Path, ModuleType] = {path: module}
    waiting = [module]
    while waiting:
        for name in _imported_names(waiting.pop()):
            found = sys.modules.get(name)
            file = Path(getattr(found, "__file__", None) or "/").resolve()
            if found is not None and file not in files and _is_own(file, path.parent):
                files[file] = found
                if file.suffix == ".py":  # A compiled extension imports nothing that can be read.
                    waiting.append(found)
    return {file.relative_to(path.parent).as_posix(): sha256_file(file) for file in sorted(files)}


def _is_own(file: Path, folder: Path) -> bool:
    """Whether a file below a recipe's folder is the user's.

    Files of a virtual environment there are not.
    """
    return file.is_relative_to(folder) and not any(
        (parent / "pyvenv.cfg").exists() or parent.name in ("site-packages", "dist-packages")
        for parent in file.parents
        if parent.is_relative_to(folder)
    )


def _imported_names(module: ModuleType) -> set[str]:
    """Names of the modules that a module's source imports, also inside functions."""
    tree = ast.parse(Path(module.__file__ or "").read_bytes())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = getattr(module, "__package__", None) or ""
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, *([base] if base else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    # A package's own file runs before the module in it.
    return names | {name.rpartition(".")[0] for name in names}
