"""Finds sizes for which a captured program may not hold.

    guarded_sizes(program, signature)
    # [{"holds_where": "x.size()[1] % 4 != 0", "not_at": [{"batch": 2, "time": 4}, ...]}]

If forward branches on a size, torch.export captures the branch that the example's sizes take. The
condition that this assumes is a guard. A saved program checks its guards when it runs. An ONNX graph
made of it has no guards: it treats other sizes like the example's. So parity must be checked at these
sizes.
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
"""Number of sizes of one dimension that are all tried, from the minimum up. Larger sizes are sampled."""

FURTHER, COMBINED = 256, 512
"""Number of random sizes of one dimension beyond `EVERY_SIZE`, and of random combinations of all
dimensions."""

MAX_ELEMENTS = 2**20
"""Maximum input elements of sizes to verify at. Larger sizes are left out if there are smaller ones: the
model runs there, and time and memory grow with them."""

KEPT = 16
"""Maximum number of sizes kept of each guard. They are spread over those at which it does not hold."""


def guarded_sizes(program: ExportedProgram, signature: Signature) -> list[dict[str, Any]]:
    """Guards that fail for some sizes of the signature, with such sizes."""
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
    """Whether all guards of a program hold at the given sizes."""
    guards = _guards(program)
    try:
        if guards is not None:
            guards(*_without_values(signature, sizes))
    except Exception:  # Whatever a guard raises, it does not hold there.
        return False
    return True


def _guards(program: ExportedProgram) -> Callable[..., object] | None:
    """The program's check of its guards, or None if it has no guards."""
    return getattr(program.module(), "_guards_fn", None)


def _without_values(signature: Signature, sizes: dict[str, int]) -> list[Tensor]:
    import torch

    return [
        torch.empty(spec.resolve(sizes), dtype=getattr(torch, spec.dtype), device="meta")
        for spec in signature.inputs.values()
    ]


def sizes_to_try(signature: Signature) -> Iterator[dict[str, int]]:
    """Sizes at which guards are checked.

    They are every size of each dimension with the others at 2 or the nearest size, all dimensions at
    their ends, and random combinations.
    """
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
    """Sizes with few elements; if all have many, the one with the fewest."""
    few = [one for one in sizes if elements(signature, one) <= MAX_ELEMENTS]
    return few or [min(sizes, key=partial(elements, signature))]


def _spread(sizes: list[dict[str, int]]) -> list[dict[str, int]]:
    places = np.linspace(0, len(sizes) - 1, min(KEPT, len(sizes))).round().astype(int)
    return [sizes[place] for place in dict.fromkeys(places.tolist())]
