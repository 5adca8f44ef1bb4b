"""A recipe's handler in process, and whether it reads requests and writes answers as the recipe says."""

from __future__ import annotations

import base64
import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from torchport.answers import same_answer
from torchport.certificate import backend_options
from torchport.errors import BackendError, RecipeError
from torchport.recipe import Recipe, Request
from torchport.recipe_file import find_handler
from torchport.store import BuildFolder
from torchport.user_code import execute, running
from torchport_runtime import Handler, InferenceRequest

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


def load_handler(recipe: Recipe, folder: Path) -> Handler:
    """The recipe's handler with signature, options, assets and, where it loads, the model of a build folder.

    Raises:
        RecipeError: the handler does not load, or its `setup` fails.
    """
    path = find_handler(recipe)
    with running(path, "setup"):
        handler = handler_class(path)()
        handler.describe(folder, dict(recipe.handler_options))
    with suppress(BackendError):  # A graph that does not load is reported where it is compared.
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


def compare_requests(recipe: Recipe, folder: BuildFolder) -> tuple[int, list[str]]:
    """Whether the handler turns each of the recipe's requests into the tensors that the recipe says, and
    the exported model's outputs into an answer. Returns how many requests there were, and what failed.
    """
    path = find_handler(recipe)
    handler = load_handler(recipe, folder.path)
    failures = []
    requests = recipe_requests(recipe)
    for index, sent in enumerate(requests):
        where = f"handler {recipe.handler}, request {index}"
        request = InferenceRequest(sent.fields())
        try:
            with running(path, "decode"):
                tensors = handler.read(request)
                problems = list(_differences(tensors, sent.tensors))
            failures += [f"{where}: {problem}" for problem in problems]
            if not problems and handler.backends:
                with running(path, "answer"):
                    handler.encode(request, handler.infer(request.graph, tensors))
        except RecipeError as err:
            failures.append(f"{where}: {err}")
    if handler.backends and not failures:
        failures += _batch_mates(recipe, handler, requests)
    return len(requests), failures


def _batch_mates(recipe: Recipe, handler: Handler, requests: list[Request]) -> Iterator[str]:
    """Requests whose answer is another among the others than alone: through padding that the model does
    not mask, or an `infer` that mixes rows.
    """
    together = handler.answer([InferenceRequest(sent.fields()) for sent in requests])
    for index, (sent, answer) in enumerate(zip(requests, together, strict=True)):
        (alone,) = handler.answer([InferenceRequest(sent.fields())])
        if alone.status != 200:
            yield f"handler {recipe.handler}, request {index}: it is refused: {alone.value}"
        elif answer.status != 200 or not same_answer(alone.value, answer.value):
            yield (
                f"handler {recipe.handler}, request {index}: alone it is answered with "
                f"{str(alone.value)[:200]}, in a batch with the recipe's other requests with "
                f"{str(answer.value)[:200]}: does padding reach the answer?"
            )


def _differences(tensors: Any, expected: Mapping[str, np.ndarray]) -> Iterator[str]:
    if set(tensors) != set(expected):
        yield f"tensors {sorted(tensors)}, expected {sorted(expected)}"
        return
    for name, wanted in expected.items():
        got = tensors[name]
        if got.dtype != wanted.dtype or got.shape != wanted.shape:
            yield f"{name!r} is {got.dtype}{list(got.shape)}, expected {wanted.dtype}{list(wanted.shape)}"
        elif not np.array_equal(got, wanted):
            worst = float(np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max())
            yield f"{name!r} differs from the recipe's tensor by up to {worst:.3g}"
