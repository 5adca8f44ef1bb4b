"""Finds a recipe by name or path, loads it, and checks it against the contract.

recipe = load_recipe("linear")            # export/linear.py here, or one that torchport brings
recipe = load_recipe("mine/spam.py")
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import sys
import sysconfig
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from packaging.version import InvalidVersion, Version

from torchport.errors import RecipeError
from torchport.hashing import sha256_file
from torchport.recipe import Recipe, Serving
from torchport.user_code import execute, running
from torchport_runtime import BackendOptions, Signature
from torchport_runtime.options import ARTIFACT_SUFFIX
from torchport_runtime.suggest import did_you_mean

_VERSION = re.compile(r"[0-9A-Za-z.]+\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\Z")
_IN_CHECKOUT = {"recipes": "export"}
_REQUIRED = ("build", "samples", "requests")


def packaged_folder(name: str) -> Path:
    """The folder of what torchport brings: "recipes", "handlers" or "deploy".

    Inside the package where it is installed; at the top of the tree in a checkout.
    """
    package = Path(__file__).parent
    installed = package / name
    return installed if installed.is_dir() else package.parent / _IN_CHECKOUT.get(name, name)


def recipe_paths() -> dict[str, Path]:
    """Recipes that can be named: those that torchport brings, and those in `export/` here, which win."""
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
        RecipeError: there is none.
    """
    text = str(given)
    if text.endswith(".py") or "/" in text or "\\" in text:
        path = Path(text)
        if not path.is_file():
            raise RecipeError(f"no recipe file {text!r}: torchport init NAME writes one to start from")
        return path
    known = recipe_paths()
    if text not in known:
        raise RecipeError(f"no recipe {text!r} in export/ or in torchport: {did_you_mean(text, known)}")
    return known[text]


def load_recipe(given: str | Path) -> Recipe:
    """Load and check a recipe.

    Raises:
        RecipeError: not found, a syntax error, an error on import, no class or two, or a breach of the
            contract; the message says what was given, what was expected and what to do.
    """
    path = find_recipe(given).resolve()
    refuse_shadowing(path.stem, f"the recipe file {path.name}")
    if (packaged_folder("handlers") / path.name).is_file():
        raise RecipeError(
            f"the recipe file {path.name} is named like a handler, and would be taken for it: "
            f"choose another name, such as {path.stem}_recipe.py"
        )
    module = _execute(path)
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Recipe) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        names = ", ".join(c.__name__ for c in classes) or "none"
        raise RecipeError(f"{path.name}: one class that subclasses Recipe is expected, found {names}")
    recipe_class = classes[0]
    _check_class(recipe_class, path)
    with running(path, recipe_class.__name__):
        recipe: Recipe = recipe_class()
    recipe.path = path
    recipe.sources = _sources(path, module)
    return recipe


def find_handler(recipe: Recipe) -> Path:
    """The file of the recipe's handler: beside it, in a `handlers/` next to its folder, or torchport's.

    Raises:
        RecipeError: there is none, or its name would shadow a package inside a server's worker.
    """
    stem = recipe.handler.removesuffix(".py")
    shipped = packaged_folder("handlers")
    folders = (recipe.path.parent, recipe.path.parent.parent / "handlers", shipped)
    for folder in folders:
        path = folder / f"{stem}.py"
        if path.is_file():
            refuse_shadowing(path.stem, f"the handler {path.name}")
            return path
    known = {path.stem for path in shipped.glob("*.py") if not path.name.startswith("_")}
    raise RecipeError(
        f"{recipe.path.name}: no handler {recipe.handler!r} beside it or in torchport: "
        f"{did_you_mean(stem, known)}"
    )


def _execute(path: Path) -> ModuleType:
    # The module's name goes into exported artifacts, so it must not depend on the folder.
    name = f"torchport_recipe_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}"
    folder = str(path.parent)
    if folder not in sys.path:
        # Last, so that a file beside the recipe cannot shadow a package.
        sys.path.append(folder)
    return execute(path, name)


def _check_class(recipe: type[Recipe], path: Path) -> None:
    where = f"{path.name}, class {recipe.__name__}"
    known = {name for name in dir(Recipe) if not name.startswith("_")} | set(Recipe.__annotations__)
    for name in vars(recipe):
        if name.startswith("_") or name in known:
            continue
        nearest = get_close_matches(name, known, n=1, cutoff=0.8)
        if nearest:
            raise RecipeError(f"{where}: {name!r} means nothing to torchport; did you mean {nearest[0]!r}?")
    for name in ("name", "handler"):
        if not isinstance(getattr(recipe, name, None), str):
            raise RecipeError(f"{where}: {name} = '...' is missing")
    for name in _REQUIRED:
        if getattr(recipe, name) is getattr(Recipe, name):
            raise RecipeError(f"{where}: the method {name}(self) is missing: see torchport init")
    if not _NAME.match(recipe.name):
        raise RecipeError(f"{where}: name {recipe.name!r}: letters, digits, _ and - are expected")
    refuse_shadowing(recipe.name, f"the name of {where}")
    try:
        Version(recipe.version)
    except (InvalidVersion, TypeError) as err:
        raise RecipeError(f"{where}: version {recipe.version!r}: a string such as '1.0' is expected") from err
    _check_settings(recipe, where)
    with running(path, f"class {recipe.__name__}"):
        signatures = recipe().signatures()
    if not isinstance(signatures, dict) or not all(isinstance(s, Signature) for s in signatures.values()):
        raise RecipeError(f"{where}: signatures() gives {signatures!r}, expected names to Signatures")


def _check_settings(recipe: type[Recipe], where: str) -> None:
    """Backends, options, serving and handler options."""
    for attribute in ("backends", "ships"):
        names = getattr(recipe, attribute)
        if not isinstance(names, (tuple, list)) or not names:
            raise RecipeError(f"{where}: {attribute} = {names!r}: a tuple of names is expected")
        for backend in names:
            if backend not in ARTIFACT_SUFFIX:
                raise RecipeError(
                    f"{where}: {attribute}: {backend!r}: {did_you_mean(str(backend), ARTIFACT_SUFFIX)}"
                )
    if set(recipe.ships) - set(recipe.backends):
        raise RecipeError(
            f"{where}: ships {list(recipe.ships)} is to be one or more of backends {list(recipe.backends)}"
        )
    if recipe.torchscript not in ("trace", "script"):
        raise RecipeError(f"{where}: torchscript {recipe.torchscript!r}: 'trace' or 'script'")
    for attribute, kind in (("options", BackendOptions), ("serving", Serving)):
        if not isinstance(getattr(recipe, attribute), kind):
            raise RecipeError(
                f"{where}: {attribute} = {getattr(recipe, attribute)!r}: {kind.__name__}(...) is expected"
            )
    try:
        options = dict(recipe.handler_options)
        plain = json.loads(json.dumps(options, allow_nan=False))
        same = json.dumps(plain) == json.dumps(options)
    except (TypeError, ValueError, RecursionError) as err:
        raise RecipeError(f"{where}: handler_options: {err}: what JSON can say is expected") from err
    if not same or not all(isinstance(key, str) for key in options):
        raise RecipeError(f"{where}: handler_options: names are to be strings, values what JSON can say")


def refuse_shadowing(stem: str, what: str) -> None:
    """A file or model named like an installed package hides it from whoever imports from its folder."""
    shadowed = stem in sys.stdlib_module_names
    if not shadowed and stem.isidentifier():
        try:
            spec = importlib.util.find_spec(stem)
        except ValueError:  # __main__ has none.
            raise RecipeError(f"{what}: {stem!r} is not a name for it: choose another") from None
        origin = spec.origin if spec else None
        libraries = tuple(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        shadowed = origin is not None and origin.startswith(libraries)
    if shadowed:
        raise RecipeError(
            f"{what}: {stem!r} is the name of an installed package, which it would shadow: "
            f"choose another, such as {stem}_model"
        )


def _sources(path: Path, module: ModuleType) -> dict[str, str]:
    """SHA-256 of the recipe and of what it imports from its own folder, by relative path."""
    files: dict[Path, ModuleType] = {path: module}
    waiting = [module]
    while waiting:
        for name in _imported_names(waiting.pop()):
            found = sys.modules.get(name)
            file = Path(getattr(found, "__file__", None) or "/").resolve()
            if found is not None and file.is_relative_to(path.parent) and file not in files:
                files[file] = found
                waiting.append(found)
    return {file.relative_to(path.parent).as_posix(): sha256_file(file) for file in sorted(files)}


def _imported_names(module: ModuleType) -> set[str]:
    """Names of the modules that a module's source imports, at its top or inside a function."""
    tree = ast.parse(Path(module.__file__ or "").read_bytes())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names
