"""The inputs that parity is measured on: real, random, swept over every dimension, and extreme."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from torchport.errors import RecipeError, SignatureError
from torchport.export import random_inputs
from torchport.recipe import Recipe
from torchport.user_code import running
from torchport_runtime import Signature, TensorSpec

SEEDS = (1, 2, 3)
MAX_ELEMENTS = 2**28
EXTREMES = {"zeros": 0.0, "ones": 1.0, "large": 1e4, "small": 1e-4, "denormal": 1e-40}
"""Floating inputs are this value, or standard normal times it where it is not 0 or 1."""


@dataclass(frozen=True)
class Case:
    """One set of inputs; `name` says where it comes from."""

    name: str
    inputs: dict[str, np.ndarray]

    @property
    def is_sample(self) -> bool:
        """Whether the recipe gave it."""
        return self.name.startswith("sample")

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def compares_rows(self) -> bool:
        """Whether its rows are also run one by one, where the model has a batch dimension."""
        return self.is_sample or self.name.startswith("seed")


def parity_cases(recipe: Recipe, graph: str, signature: Signature) -> Iterator[Case]:
    """Every case of one graph.

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
        yield Case(f"sample {index}", dict(sample))
    if not samples:
        raise RecipeError(f"{recipe.path.name}: samples() gives nothing: parity needs real inputs")
    usual = {s: min(high, max(low, 2)) for s, (low, high) in signature.dims.items()}
    for symbol, (low, high) in signature.dims.items():
        for size in sweep(low, high):
            sizes = usual | {symbol: size}
            elements = sum(math.prod(spec.resolve(sizes)) for spec in signature.inputs.values())
            if elements > MAX_ELEMENTS:
                raise RecipeError(
                    f"{recipe.path.name}: inputs at {symbol}={size} have {elements:,} elements, which no "
                    f"machine is asked to prove: give dims a lower greatest {symbol!r}"
                )
            yield Case(f"{symbol}={size}", random_inputs(signature, sizes, 0))
    for seed in SEEDS:
        yield Case(f"seed {seed}", random_inputs(signature, usual, seed))
    for name, value in EXTREMES.items():
        inputs = random_inputs(signature, usual, 0)
        yield Case(name, {n: extreme(signature.inputs[n], a, value) for n, a in inputs.items()})


def sweep(low: int, high: int) -> list[int]:
    """The least and the greatest size, and odd ones between: 3, and an odd one near the middle."""
    odd = {3, (low + high) // 2 | 1}
    return sorted({low, high} | {size for size in odd if low <= size <= high})


def extreme(spec: TensorSpec, random: np.ndarray, value: float) -> np.ndarray:
    """An input at an extreme: floats of that magnitude, integers at the end of their range."""
    if random.dtype.kind == "b":
        return np.full_like(random, value >= 1)
    if random.dtype.kind in "iu":
        low = 0 if spec.low is None else int(spec.low)
        high = low + 1 if spec.high is None else int(spec.high)
        return np.full_like(random, high if value >= 1 else low)
    filled = np.full_like(random, value) if value in (0.0, 1.0) else random * random.dtype.type(value)
    clipped: np.ndarray = np.clip(filled, spec.low, spec.high).astype(random.dtype)
    return clipped
