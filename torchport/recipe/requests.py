"""A recipe's requests, and the sample request of its certificate."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from torchport.errors import RecipeError
from torchport.recipe.contract import Recipe, Request
from torchport.recipe.user_code import running

SAMPLE_BYTES = 256 * 1024
"""Maximum bytes of a sample request. A larger one is not in the certificate."""


def sample_request(recipe: Recipe) -> dict[str, Any] | None:
    """The recipe's first request, as its certificate contains it.

    `torchport infer` and `query` send it unless given another. None if it is larger than
    `SAMPLE_BYTES`.
    """
    first = recipe_requests(recipe)[0]
    if len(first.content) > SAMPLE_BYTES:
        return None
    body = {"json": first.json} if first.body is None else {"b64": base64.b64encode(first.body).decode()}
    return {"content_type": first.content_type, "params": dict(first.params), **body}


def recipe_requests(recipe: Recipe) -> list[Request]:
    """The recipe's requests, checked.

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
