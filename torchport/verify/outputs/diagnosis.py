"""Describes a wrong output: where it is wrong, and what it holds instead.

    describe(over, ("batch", 2, 9, 9))     # "40 of 324 values, all at index 1 of axis 1"

An exceeded bound says that something is wrong; this says where to look first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

FEW = 0.25
"""Maximum share of an axis' indices that are named. If more of them hold wrong values, none is named."""


def describe(over: np.ndarray, shape: Sequence[int | str]) -> str:
    """Locate the wrong values (`over`, a boolean array) by axes of the shape.

    `shape` is the signature's.
    """
    count = f"{int(over.sum())} of {over.size} values"
    places = list(_places(over, shape))
    return f"{count}, {', '.join(places)}" if places else count


def _places(over: np.ndarray, shape: Sequence[int | str]) -> Iterator[str]:
    border = []
    for axis, size in enumerate(over.shape):
        wrong = np.flatnonzero(over.any(axis=tuple(a for a in range(over.ndim) if a != axis)))
        named = f"axis {axis}" + (f" ({shape[axis]!r})" if isinstance(shape[axis], str) else "")
        if len(wrong) == 1 < size:
            yield f"all at index {wrong[0]} of {named}"
        elif 0 < len(wrong) <= FEW * size:
            yield f"all at indices {', '.join(map(str, wrong[:4]))}{' ...' * (len(wrong) > 4)} of {named}"
        if axis >= 2 and size > 2:
            border.append(axis)
    if border and over.any() and not over[tuple(_inside(over, border))].any():
        yield "only at the border: padding?"


def _inside(over: np.ndarray, axes: Sequence[int]) -> list[slice]:
    return [slice(1, -1) if axis in axes else slice(None) for axis in range(over.ndim)]


def mistaken_for(
    array: np.ndarray, expected: np.ndarray, others: Mapping[str, np.ndarray], bound: float
) -> str | None:
    """Say what a wrong output holds instead; None if nothing known matches.

    It may be another output, or itself negated, reversed or transposed. `others` are the true values of
    the other outputs by name, each with the same rows as `array`.
    """

    def is_close(candidate: np.ndarray) -> bool:
        return candidate.shape == array.shape and bool(
            np.allclose(array, candidate, rtol=1e-4, atol=bound, equal_nan=True)
        )

    for name, value in others.items():
        if value.dtype.kind == "f" and is_close(value):
            return f"it holds what the trained model gives as {name!r}: outputs in another order?"
    if is_close(-expected):
        return "its sign is turned over"
    for axis in range(expected.ndim):
        if expected.shape[axis] > 1 and is_close(np.flip(expected, axis)):
            return f"axis {axis} runs the other way"
    for axis in range(1, expected.ndim - 1):
        if expected.shape[axis] > 1 and is_close(np.swapaxes(expected, axis, axis + 1)):
            return f"axes {axis} and {axis + 1} are exchanged"
    return None
