"""A recipe's parameters: the keyword arguments of its `configure`.

    torchport ship digits_vgg11 --epochs 2

They come from Python or from the command line: `--epochs 2` becomes `recipe.configure(epochs=2)`. The
types are those of the annotations.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchport.errors import MissingParameter, RecipeError
from torchport.recipe.contract import Recipe
from torchport_runtime.suggest import did_you_mean

_TYPES = (int, float, str, bool, Path, list[str])
TAKEN = frozenset(["seed", "weights", "force", "store", "cache", "device", "backend", "help"])
"""Options of the commands that load a recipe. A recipe cannot have parameters of these names."""

_WORDS = {"true": True, "false": False}


def configure(recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """Call the recipe's `configure` with `given`.

    Returns all arguments that it was called with, defaults included, as JSON values.

    Raises:
        RecipeError: an unknown, missing or repeated parameter, or a value of the wrong type.
    """
    file = recipe.path.name
    try:
        signature = inspect.signature(recipe.configure, eval_str=True)
    except (NameError, TypeError, ValueError) as err:
        raise RecipeError(f"{file}: configure: {err}") from err
    for parameter in signature.parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or _kind(parameter) is None:
            raise RecipeError(
                f"{file}: configure: {parameter}: a keyword-only parameter (after *) of one of the types "
                "int, float, str, bool, Path, list[str] is expected"
            )
    for name in signature.parameters:
        if name in TAKEN:
            raise RecipeError(f"{file}: configure: {name!r} is an option of torchport's: choose another name")
    for name in given:
        if name not in signature.parameters:
            nearest = did_you_mean(name, signature.parameters) if signature.parameters else "it takes none"
            raise RecipeError(f"{file}: no parameter {name!r}: {nearest}")
    values: dict[str, Any] = {}
    missing: list[str] = []
    for name, parameter in signature.parameters.items():
        if name in given:
            values[name] = _converted(parameter, given[name], file)
        elif parameter.default is inspect.Parameter.empty:
            missing.append(f"--{name.replace('_', '-')}")
        else:
            values[name] = parameter.default
    if missing:
        raise MissingParameter(f"{file} needs {', '.join(missing)}", missing, recipe.task)
    recipe.configure(**values)
    shown = {n: str(v) if isinstance(v, Path) else v for n, v in values.items()}
    plain: dict[str, Any] = json.loads(json.dumps(shown))
    return plain


def from_arguments(arguments: Sequence[str], own_options: Sequence[str] = ()) -> dict[str, list[str]]:
    """Parse `["--epochs", "2", "--input=x"]` to `{"epochs": ["2"], "input": ["x"]}`.

    A bare `--flag` is "true". `own_options` are those of the command itself, for the hint about a
    mistyped one.

    Raises:
        RecipeError: an argument that belongs to no option.
    """
    values: dict[str, list[str]] = {}
    name = None
    for argument in arguments:
        if argument.startswith("--") and len(argument) > 2:
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            values.setdefault(name, [])
            if equals:
                values[name].append(value)
                name = None
            else:
                values[name].append("true")
        elif name is not None:
            values[name][-1] = argument
            name = None
        else:
            raise RecipeError(
                f"{argument!r}: what is this? {did_you_mean(argument, own_options) if own_options else ''}"
                " (a recipe's own parameters are given as --name value)"
            )
    return values


def _kind(parameter: inspect.Parameter) -> Any:
    """The type of a parameter, without `| None`; None if unsupported."""
    annotation = parameter.annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(annotation) if a is not type(None)]
        annotation = rest[0] if len(rest) == 1 else None
    return annotation if annotation in _TYPES else None


def _converted(parameter: inspect.Parameter, value: Any, file: str) -> Any:
    kind = _kind(parameter)
    if kind == list[str]:
        values = [value] if isinstance(value, str) else list(value)
        return [str(item) for item in values]
    if isinstance(value, list):
        if len(value) != 1:
            raise RecipeError(f"{file}: --{parameter.name} was given {len(value)} times: once is expected")
        (value,) = value
    if value is None and parameter.default is None:
        return None
    wrong = RecipeError(f"{file}: --{parameter.name} {value!r}: {kind.__name__} is expected")
    if kind is bool:
        word = _WORDS.get(str(value).lower())
        if word is None:
            raise wrong
        return word
    if isinstance(value, bool) or (kind is int and isinstance(value, float)):
        raise wrong
    try:
        return kind(value)
    except (TypeError, ValueError) as err:
        raise wrong from err
