"""Checks a recipe against the contract.

Each error says what was given, what was expected, and what to do.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from torchport.errors import RecipeError
from torchport.recipe.contract import Recipe, Serving
from torchport.recipe.goals import parse_goal
from torchport.recipe.installed import installed_file
from torchport.recipe.user_code import running
from torchport_runtime import BackendOptions, Signature
from torchport_runtime.options import ARTIFACT_SUFFIX, BACKEND_PRECISIONS, HALF_PRECISIONS
from torchport_runtime.suggest import did_you_mean

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\Z")

MISTYPED_LETTERS = 4
"""Minimum letters of a name that may be a mistyped attribute. A shorter name is near to many attributes,
and may well be the recipe's own."""


def check_class(recipe: type[Recipe], where: str) -> None:
    """Check what can be wrong before the recipe has its parameters.

    Raises:
        RecipeError: a mistyped attribute, or a method that is missing.
    """
    known = {name for name in dir(Recipe) if not name.startswith("_")} | set(Recipe.__annotations__)
    for name in vars(recipe):
        if name.startswith("_") or name in known or len(name) < MISTYPED_LETTERS:
            continue
        nearest = get_close_matches(name, known, n=1, cutoff=0.8)
        if nearest:
            raise RecipeError(f"{where}: {name!r} means nothing to torchport; did you mean {nearest[0]!r}?")
    required = ["build", "requests"]
    if recipe.graph_samples is Recipe.graph_samples:
        required.append("samples")
    for name in required:
        if getattr(recipe, name) is getattr(Recipe, name):
            raise RecipeError(f"{where}: the method {name}(self) is missing: see torchport init")


def check_recipe(recipe: Recipe, where: str) -> None:
    """Check a configured recipe's name, version, settings and signatures.

    Raises:
        RecipeError: one of them is missing or wrong.
    """
    for name in ("name", "handler"):
        if not isinstance(getattr(recipe, name, None), str):
            raise RecipeError(f"{where}: {name} = '...' is missing")
    if not _NAME.match(recipe.name):
        raise RecipeError(f"{where}: name {recipe.name!r}: letters, digits, _ and - are expected")
    refuse_shadowing(recipe.name, f"the name of {where}", recipe.path)
    try:
        Version(recipe.version)
    except (InvalidVersion, TypeError) as err:
        raise RecipeError(f"{where}: version {recipe.version!r}: a string such as '1.0' is expected") from err
    if "-" in recipe.version:
        raise RecipeError(f"{where}: version {recipe.version!r}: no '-', which ends the name in a file's")
    _check_settings(recipe, where)
    with running(recipe.path, f"class {type(recipe).__name__}"):
        signatures = recipe.signatures()
    if not isinstance(signatures, dict) or not all(isinstance(s, Signature) for s in signatures.values()):
        raise RecipeError(f"{where}: signatures() gives {signatures!r}, expected names to Signatures")
    for graph in signatures:
        if not isinstance(graph, str) or not graph.isidentifier():
            raise RecipeError(f"{where}: signatures(): the graph {graph!r}: an identifier is expected")


def _check_settings(recipe: Recipe, where: str) -> None:
    """Check backends, options, serving, goals and handler options."""
    for attribute in ("backends", "ships", "optional_backends"):
        names = getattr(recipe, attribute)
        if not isinstance(names, (tuple, list)) or not (names or attribute == "optional_backends"):
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
    for backend in recipe.optional_backends:
        if backend not in recipe.backends or backend in recipe.ships:
            raise RecipeError(
                f"{where}: optional_backends: {backend!r} is to be one of backends, and none of ships"
            )
    _check_precisions(recipe, where)
    if recipe.torchscript not in ("trace", "script"):
        raise RecipeError(f"{where}: torchscript {recipe.torchscript!r}: 'trace' or 'script'")
    for attribute, kind in (("options", BackendOptions), ("serving", Serving)):
        if not isinstance(getattr(recipe, attribute), kind):
            raise RecipeError(
                f"{where}: {attribute} = {getattr(recipe, attribute)!r}: {kind.__name__}(...) is expected"
            )
    try:
        for requirement in recipe.requirements:
            Requirement(requirement)
    except (InvalidRequirement, TypeError) as err:
        raise RecipeError(f"{where}: requirements {recipe.requirements!r}: {err}") from err
    if not isinstance(recipe.goals, Mapping):
        raise RecipeError(f"{where}: goals = {recipe.goals!r}: names to '>= number' are expected")
    for metric, goal in recipe.goals.items():
        parse_goal(metric, goal)
    try:
        options = dict(recipe.handler_options)
        plain = json.loads(json.dumps(options, allow_nan=False))
        same = json.dumps(plain) == json.dumps(options)
    except (TypeError, ValueError, RecursionError) as err:
        raise RecipeError(f"{where}: handler_options: {err}: what JSON can say is expected") from err
    if not same or not all(isinstance(key, str) for key in options):
        raise RecipeError(f"{where}: handler_options: names are to be strings, values what JSON can say")


def _check_precisions(recipe: Recipe, where: str) -> None:
    known = ("float32", *HALF_PRECISIONS)
    for attribute in ("precisions", "optional_precisions"):
        names = getattr(recipe, attribute)
        if not isinstance(names, (tuple, list)):
            raise RecipeError(f"{where}: {attribute} = {names!r}: a tuple of names is expected")
        for name in names:
            if name == "int8":
                raise RecipeError(
                    f"{where}: {attribute}: 'int8' is not exported: torchport quantize makes it"
                )
            if name not in known:
                raise RecipeError(f"{where}: {attribute}: {name!r}: {did_you_mean(str(name), known)}")
    if not recipe.precisions or recipe.precisions[0] != "float32":
        raise RecipeError(
            f"{where}: precisions = {recipe.precisions!r}: 'float32' comes first: what it proves, the others "
            "build upon"
        )
    for name in recipe.precisions:
        if not any(name in BACKEND_PRECISIONS[backend] for backend in recipe.backends):
            raise RecipeError(
                f"{where}: precisions: none of the backends {', '.join(recipe.backends)} computes in {name}"
            )
    for name in recipe.optional_precisions:
        if name not in recipe.precisions or name == "float32":
            raise RecipeError(
                f"{where}: optional_precisions: {name!r} is to be one of precisions, and not float32"
            )


def refuse_shadowing(stem: str, what: str, own: Path | None = None) -> None:
    """Refuse a file or model that is named like an installed package.

    It would hide the package from every import from its folder. `own` is the file itself: in a project
    that is installed in place, the name finds that file.
    """
    if stem == "__main__":
        raise RecipeError(f"{what}: {stem!r} is not a name for it: choose another")
    shadowed = stem in sys.stdlib_module_names
    if not shadowed and stem.isidentifier():
        found = installed_file(stem)
        shadowed = found is not None and (own is None or found.resolve() != own.resolve())
    if shadowed:
        raise RecipeError(
            f"{what}: {stem!r} is the name of an installed package, which it would shadow: "
            f"choose another, such as {stem}_model"
        )
