"""Sizes for which what torch.export captured may not hold: where forward asks for a size and goes one way or
another, the way that it went at the example's sizes is captured, and what that takes for granted is a guard.

    guarded_sizes(program, signature)
    # [{"holds_where": "x.size()[1] % 4 != 0", "not_at": [{"batch": 2, "time": 4}, ...]}]

A saved program checks its guards when it runs. An ONNX graph made of it has none: it answers for other
sizes as if they were such as the example's. So these are sizes that parity has to be asked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport.recipe.inputs import elements
from torchport_runtime import Signature

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

EVERY_SIZE = 1024
"""Sizes of one dimension, from the least on, that are all tried; beyond them some."""

FURTHER, COMBINED = 256, 512
"""Sizes of one dimension beyond, and sizes of all dimensions at once, drawn at random."""

MOST_ELEMENTS = 2**20
"""Of the inputs at one size: parity runs the model there, and time and memory go with it."""

KEPT = 16
"""Sizes of each guard, spread over those at which it does not hold."""


def guarded_sizes(program: ExportedProgram, signature: Signature) -> list[dict[str, Any]]:
    """Each guard that does not hold for all sizes of the signature, and some at which it does not."""
    guards = _guards(program)
    if guards is None:
        return []
    found: dict[str, list[dict[str, int]]] = {}
    for sizes in sizes_to_try(signature):
        try:
            guards(*_without_values(signature, sizes))
        except Exception as err:  # It does not hold; or it cannot be asked, as where it divides by 0.
            said = str(err).removeprefix("Guard failed: ").splitlines() or [type(err).__name__]
            found.setdefault(said[0][:200], []).append(sizes)
    return [
        {"holds_where": guard, "not_at": _spread(_affordable(sizes, signature))}
        for guard, sizes in found.items()
    ]


def holds_at(program: ExportedProgram, signature: Signature, sizes: dict[str, int]) -> bool:
    """Whether all guards of a program hold at some sizes."""
    guards = _guards(program)
    try:
        if guards is not None:
            guards(*_without_values(signature, sizes))
    except Exception:  # Whatever a guard raises, it does not hold there.
        return False
    return True


def _guards(program: ExportedProgram) -> Callable[..., object] | None:
    """What checks the guards, or None where nothing was taken for granted."""
    return getattr(program.module(), "_guards_fn", None)


def _without_values(signature: Signature, sizes: dict[str, int]) -> list[Tensor]:
    import torch

    return [
        torch.empty(spec.resolve(sizes), dtype=getattr(torch, spec.dtype), device="meta")
        for spec in signature.inputs.values()
    ]


def sizes_to_try(signature: Signature) -> Iterator[dict[str, int]]:
    """Every size of each dimension, the others at 2 or what is nearest; the ends of all; and some of all."""
    dims = signature.dims
    usual = {symbol: min(high, max(low, 2)) for symbol, (low, high) in dims.items()}
    draw = np.random.default_rng(0)
    for symbol, (low, high) in dims.items():
        sizes = list(range(low, min(high, low + EVERY_SIZE) + 1))
        if sizes[-1] < high:
            beyond = draw.integers(sizes[-1] + 1, high, FURTHER, endpoint=True)
            sizes += [*sorted({int(size) for size in beyond}), high - 1, high]
        yield from (usual | {symbol: size} for size in sizes)
    yield from (dict(zip(dims, ends, strict=True)) for ends in islice(product(*dims.values()), COMBINED))
    if len(dims) > 1:
        for _ in range(COMBINED):
            yield {s: int(draw.integers(low, high, endpoint=True)) for s, (low, high) in dims.items()}


def _affordable(sizes: list[dict[str, int]], signature: Signature) -> list[dict[str, int]]:
    """Those with few elements; where all have many, the one that has the fewest."""
    few = [one for one in sizes if elements(signature, one) <= MOST_ELEMENTS]
    return few or [min(sizes, key=partial(elements, signature))]


def _spread(sizes: list[dict[str, int]]) -> list[dict[str, int]]:
    places = np.linspace(0, len(sizes) - 1, min(KEPT, len(sizes))).round().astype(int)
    return [sizes[place] for place in dict.fromkeys(places.tolist())]
