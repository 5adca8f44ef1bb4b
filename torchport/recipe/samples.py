"""A recipe's samples, checked against a graph's signature."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from torchport.errors import RecipeError, SignatureError
from torchport.recipe.contract import Recipe
from torchport.recipe.user_code import running
from torchport_runtime import Signature


def checked_samples(recipe: Recipe, graph: str, signature: Signature) -> Iterator[dict[str, np.ndarray]]:
    """The recipe's samples of one graph, each checked against its signature.

    Raises:
        RecipeError: the recipe gives no samples, or one that does not fit its own signature.
    """
    with running(recipe.path, "samples"):
        samples = list(recipe.graph_samples(graph) or ())
    for index, sample in enumerate(samples):
        try:
            signature.check_inputs(sample)
        except (SignatureError, AttributeError, TypeError) as err:
            raise RecipeError(f"{recipe.path.name}: sample {index} of graph {graph!r}: {err}") from err
        yield dict(sample)
    if not samples:
        raise RecipeError(f"{recipe.path.name}: samples() gives nothing: parity needs real inputs")
