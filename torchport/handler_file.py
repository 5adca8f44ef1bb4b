"""A recipe's handler in process, and whether it reads requests and writes answers as the recipe says."""

from __future__ import annotations

import base64
import inspect
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from torchport.certificate import backend_options
from torchport.errors import BackendError, RecipeError
from torchport.recipe import Recipe, Request
from torchport.recipe_file import find_handler
from torchport.torch_threads import torch_threads_kept
from torchport.user_code import execute, running
from torchport_runtime import Handler

SAMPLE_BYTES = 256 * 1024
"""A sample request of more than this does not travel in the certificate."""


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
    """The recipe's handler with the signature, options and assets of a build folder, and no model yet.

    Raises:
        RecipeError: the handler does not load, or its `setup` fails.
    """
    path = find_handler(recipe)
    with running(path, "setup"):
        handler = handler_class(path)()
        handler.describe(folder, dict(recipe.handler_options))
    return handler


def load_handler(recipe: Recipe, folder: Path) -> Handler:
    """The recipe's handler with signature, options, assets and, where it loads, the model of a build folder.

    Raises:
        RecipeError: the handler does not load, or its `setup` fails.
    """
    handler = described_handler(recipe, folder)
    with (
        suppress(BackendError),
        torch_threads_kept(),
    ):  # A graph that does not load is reported where it is compared.
        handler.load(folder, backend_options(recipe, recipe.ships[0], "cpu"), dict(recipe.handler_options))
    return handler


def sample_request(recipe: Recipe) -> dict[str, Any] | None:
    """The recipe's first request, which `torchport infer` and `query` send when given no other."""
    first = recipe_requests(recipe)[0]
    if len(first.content) > SAMPLE_BYTES:
        return None
    body = {"json": first.json} if first.body is None else {"b64": base64.b64encode(first.body).decode()}
    return {"content_type": first.content_type, "params": dict(first.params), **body}


def recipe_requests(recipe: Recipe) -> list[Request]:
    """The recipe's requests.

    Raises:
        RecipeError: requests() fails, gives none, or something else; or tensors that are no arrays.
    """
    with running(recipe.path, "requests"):
        requests = list(recipe.requests() or ())
    if not requests or not all(isinstance(request, Request) for request in requests):
        raise RecipeError(f"{recipe.path.name}: requests() is to give at least one Request(...)")
    for index, request in enumerate(requests):
        if not request.tensors or not all(isinstance(t, np.ndarray) for t in request.tensors.values()):
            raise RecipeError(
                f"{recipe.path.name}: request {index}: tensors are to be numpy arrays by input name"
            )
    return requests
