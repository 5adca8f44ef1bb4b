"""Checks how a handler reads and answers the recipe's requests.

Each request must become the tensors that the recipe says. Its answer must be the same alone and in a
batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from torchport.errors import BackendError, RecipeError
from torchport.recipe.contract import Recipe, Request
from torchport.recipe.handler import described_handler
from torchport.recipe.inputs import random_inputs
from torchport.recipe.loading import find_handler
from torchport.recipe.requests import recipe_requests
from torchport.recipe.user_code import running
from torchport.recipe.variants import backend_options
from torchport.store.folders import BuildFolder
from torchport.verify.answers.equality import RTOL, as_served, same_answer
from torchport.verify.torch_threads import torch_threads_kept
from torchport_runtime import BadRequest, Handler, ImageTransform, InferenceRequest, Signature
from torchport_runtime.requests.batching import common_sizes, run_together
from torchport_runtime.scaled_image import ScaledImage


def compare_requests(recipe: Recipe, folder: BuildFolder) -> tuple[int, list[str]]:
    """Check that the handler decodes and answers each of the recipe's requests.

    The tensors must be those that the recipe says, and the exported model's outputs must become an
    answer. Returns the number of requests, and what failed.
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
                expected = handler.signatures[request.graph].with_defaults(dict(sent.tensors))
                problems = list(_differences(tensors, expected))
            failures += [f"{where}: {problem}" for problem in problems]
            if not problems and handler.backends:
                with running(path, "answer"):
                    handler.encode(request, handler.infer(request.graph, tensors))
        except RecipeError as err:
            failures.append(f"{where}: {err}")
    if handler.backends and not failures:
        failures += _batch_mates(recipe, handler, requests)
        failures += _padding(recipe, handler, requests)
    failures += _scaled_decoding(recipe, handler, requests)
    return len(requests), failures


def answered_requests(recipe: Recipe, folder: BuildFolder) -> Iterator[tuple[Request, Any]]:
    """The recipe's requests, each with the handler's answer to it alone.

    There are none if the handler's backend does not load.
    """
    handler = load_handler(recipe, folder.path)
    for sent in recipe_requests(recipe) if handler.backends else ():
        (answer,) = handler.answer([InferenceRequest(sent.fields())])
        yield (
            sent,
            as_served(answer),
        )  # As a client would get it: JSON knows no tuples, and its keys are texts.


def _batch_mates(recipe: Recipe, handler: Handler, requests: list[Request]) -> Iterator[str]:
    """Requests that are answered otherwise in a batch than alone.

    The cause is padding that the model does not mask, or an `infer` that mixes rows.
    """
    together = handler.answer([InferenceRequest(sent.fields()) for sent in requests])
    for index, (sent, answer) in enumerate(zip(requests, together, strict=True)):
        (alone,) = handler.answer([InferenceRequest(sent.fields())])
        if alone.status != 200:
            yield f"handler {recipe.handler}, request {index}: it is refused: {alone.value}"
        elif answer.status != 200 or not same_answer(as_served(alone), as_served(answer)):
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


def _scaled_decoding(recipe: Recipe, handler: Handler, requests: list[Request]) -> Iterator[str]:
    """A transform that decodes photographs at a reduced scale, if no request is such a photograph.

    Nothing would then hold the recipe's way of decoding them against the handler's.
    """
    transform = getattr(handler, "transform", None)  # The handlers that come along name it so.
    if not isinstance(transform, ImageTransform) or transform.reducing_gap is None:
        return
    for sent in requests:
        with suppress(BadRequest):  # Not every request has a picture.
            if isinstance(transform.decode(InferenceRequest(sent.fields()).content), ScaledImage):
                return
    height, width = (2 * math.ceil(side * transform.reducing_gap) for side in transform.size)
    yield (
        f"handler {recipe.handler}: its image transform has a reducing_gap, but no request is a JPEG that is "
        f"decoded at a reduced scale: add one of at least {width} x {height} pixels, its tensor made with "
        "`transform.decode`, or leave reducing_gap out"
    )


def _padding(recipe: Recipe, handler: Handler, requests: list[Request]) -> Iterator[str]:
    """Requests that are answered otherwise next to the longest possible input.

    The handler's `padding` fills them up to its length.
    """
    for index, sent in enumerate(requests):
        request = InferenceRequest(sent.fields())
        tensors = handler.read(request)
        signature = handler.signatures[request.graph]
        longest = _longest_mate(signature, tensors, handler.padding)
        if longest is None:
            continue

        def infer(inputs: dict[str, np.ndarray], graph: str = request.graph) -> dict[str, np.ndarray]:
            return handler.infer(graph, inputs)

        (alone,) = run_together(signature, [tensors], handler.padding, infer)
        beside, _ = run_together(signature, [tensors, longest], handler.padding, infer)
        for name, value in alone.items():
            other = beside[name]
            close = value.shape == other.shape and (
                np.allclose(value, other, rtol=RTOL, atol=RTOL * _scale(value), equal_nan=True)
                if value.dtype.kind == "f"
                else np.array_equal(value, other)
            )
            if not close:
                yield (
                    f"handler {recipe.handler}, request {index}: {name!r} differs beside a longer request: "
                    "the handler's padding reaches the answer: mask it in the model, or leave padding out"
                )


def _longest_mate(
    signature: Signature, tensors: Mapping[str, np.ndarray], padding: Mapping[str, float]
) -> dict[str, np.ndarray] | None:
    """A row of random inputs with padded dimensions at their maximum.

    None if nothing is padded.
    """
    if signature.batch_dim is None:
        return None
    sizes = {s: n for name, a in tensors.items() for s, n in signature.inputs[name].sizes(a.shape).items()}
    shared = dict(common_sizes(signature, dict(tensors), padding))
    free = set(sizes) - set(shared) - {signature.batch_dim}
    if not free:
        return None
    maximum = {symbol: signature.dims[symbol][1] for symbol in free}
    return random_inputs(signature, {**sizes, **maximum, signature.batch_dim: 1}, seed=0)


def _scale(value: np.ndarray) -> float:
    finite = np.abs(value[np.isfinite(value)])
    return float(finite.max(initial=0.0))


def load_handler(recipe: Recipe, folder: Path) -> Handler:
    """The recipe's handler with signature, options and assets.

    It also has the model of the build folder, if that loads.

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
