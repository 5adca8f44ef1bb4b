"""Random inputs of a signature, for tracing models and comparing exports.

example_inputs(signature)["x"].shape             # (2, 1)
"""

from __future__ import annotations

import math
from itertools import chain

import numpy as np

from torchport_runtime import Signature
from torchport_runtime.signature import TensorSpec

ROOM = 11
"""Distance of a traced size from the dimension's minimum. It is smaller if the maximum is nearer."""


def example_sizes(signature: Signature) -> dict[str, int]:
    """Sizes to trace with: each dimension at least 2, and no two alike.

    A dimension of 1 would be specialised, and two of the same size could be taken for one. Dimensions
    other than the batch are above their minimum: a window that fits in only once is taken for a fixed
    one.
    """
    taken: set[int] = set()
    sizes: dict[str, int] = {}
    for symbol, (low, high) in signature.dims.items():
        minimum = max(low, 2)
        start = minimum if symbol == signature.batch_dim else min(minimum + ROOM, high)
        upward, downward = range(start, high + 1), range(start - 1, minimum - 1, -1)
        sizes[symbol] = next((size for size in chain(upward, downward) if size not in taken), high)
        taken.add(sizes[symbol])
    return sizes


def example_inputs(signature: Signature, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs to trace with, of `example_sizes`."""
    return random_inputs(signature, example_sizes(signature), seed)


def random_inputs(signature: Signature, sizes: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """Inputs of the given sizes, drawn at random.

    Floats are standard normal within a spec's bounds, or uniform if it has both. Integers are uniform.
    """
    generator = np.random.default_rng(seed)
    return {
        name: random_tensor(spec, spec.resolve(sizes), generator) for name, spec in signature.inputs.items()
    }


def elements(signature: Signature, sizes: dict[str, int]) -> int:
    """The number of elements of all inputs together."""
    return sum(math.prod(spec.resolve(sizes)) for spec in signature.inputs.values())


def random_tensor(spec: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b":
        mask = generator.integers(0, 2, shape).astype(dtype)
        if mask.ndim > 1:
            mask[..., 0] = True  # Nothing at all to attend to is NaN in most models; `zeros` tries that.
        return mask
    if dtype.kind in "iu":
        low = 0 if spec.low is None else int(spec.low)
        high = max(low, 100) if spec.high is None else int(spec.high)
        return generator.integers(low, high, shape, endpoint=True).astype(dtype)
    if spec.low is not None and spec.high is not None:
        return generator.uniform(spec.low, spec.high, shape).astype(dtype)
    return spec.clip(generator.standard_normal(shape)).astype(dtype)
