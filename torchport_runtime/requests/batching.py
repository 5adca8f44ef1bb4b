"""Runs several requests as one batch, and splits the outputs among them.

outputs = run_together(signature, [tensors_a, tensors_b], padding={}, infer=backend.run)
outputs[0]                       # what belongs to tensors_a
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np

from torchport_runtime.signature import Signature, TensorSpec

Tensors = dict[str, np.ndarray]


def common_sizes(
    signature: Signature, tensors: Tensors, padding: Mapping[str, float]
) -> tuple[tuple[str, int], ...]:
    """The sizes that requests must share to be run together.

    These are all sizes except the batch and those that are padded.
    """
    if len(signature.dims) == 1 and signature.batch_dim is not None:
        return ()
    free = _padded_dims(signature, padding) | {signature.batch_dim}
    return tuple(sorted((s, n) for s, n in _sizes(signature, tensors).items() if s not in free))


def run_together(
    signature: Signature,
    parts: Sequence[Tensors],
    padding: Mapping[str, float],
    infer: Callable[[Tensors], Tensors],
) -> list[Tensors]:
    """Run several requests together; return the outputs of each.

    The batches are those that the signature allows. Inputs named in `padding` are filled up with its
    values to the longest of the requests. Outputs are cut to the sizes that each request would have alone.
    """
    batch_dim = signature.batch_dim
    if batch_dim is None:
        return [infer(part) for part in parts]
    rows = [len(next(iter(part.values()))) for part in parts]
    joined = {name: _joined([part[name] for part in parts], padding.get(name)) for name in parts[0]}
    shares = split_rows(run_pieces(signature, joined, infer), rows)
    padded = _padded_dims(signature, padding) if padding else set()
    if not padded:
        return shares
    return [
        {
            name: _cut(array, signature.outputs.get(name), padded, _sizes(signature, part))
            for name, array in share.items()
        }
        for share, part in zip(shares, parts, strict=True)
    ]


def run_pieces(signature: Signature, inputs: Tensors, infer: Callable[[Tensors], Tensors]) -> Tensors:
    """Run one or more rows, in batches that the signature allows."""
    assert signature.batch_dim is not None
    rows, limit = len(next(iter(inputs.values()))), signature.dims[signature.batch_dim][1]
    if rows <= limit:
        return infer(inputs)
    pieces = [
        infer({name: array[start : start + limit] for name, array in inputs.items()})
        for start in range(0, rows, limit)
    ]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def split_rows(outputs: Tensors, counts: Sequence[int]) -> list[Tensors]:
    """Split outputs among requests with these numbers of rows."""
    return [
        {name: array[end - count : end] for name, array in outputs.items()}
        for count, end in zip(counts, accumulate(counts), strict=True)
    ]


def _sizes(signature: Signature, tensors: Tensors) -> dict[str, int]:
    return {s: n for name, a in tensors.items() for s, n in signature.inputs[name].sizes(a.shape).items()}


def _padded_dims(signature: Signature, padding: Mapping[str, float]) -> set[str]:
    known = {symbol for spec in signature.inputs.values() for symbol in spec.symbols}
    if any(set(spec.symbols) - known for spec in signature.outputs.values()):
        return set()  # A size that follows a padded one, half of it say: nothing tells where to cut.
    named = (signature.inputs[name].symbols for name in padding if name in signature.inputs)
    return {symbol for symbols in named for symbol in symbols} - {signature.batch_dim or ""}


def _joined(arrays: list[np.ndarray], fill: float | None) -> np.ndarray:
    """Concatenate the requests' rows, filled up to the longest with `fill`."""
    if len(arrays) == 1:
        return arrays[0]
    if fill is not None:
        longest = np.max([array.shape[1:] for array in arrays], axis=0)
        arrays = [
            np.pad(
                array,
                [(0, 0), *((0, int(n) - size) for n, size in zip(longest, array.shape[1:], strict=True))],
                constant_values=fill,
            )
            for array in arrays
        ]
    return np.concatenate(arrays)


def _cut(
    array: np.ndarray, spec: TensorSpec | None, padded: set[str], sizes: Mapping[str, int]
) -> np.ndarray:
    """One request's part of an output, without its padding."""
    if spec is None or len(spec.shape) != array.ndim:
        return array
    return array[tuple(slice(sizes[s]) if s in padded else slice(None) for s in spec.shape)]
