"""Compares two backends' outputs for the same rows, beyond rounding.

    allowed = Allowed.of_certificate(folder / "parity.json", "main", ["onnxruntime", "torchscript"])
    difference = compare(signature, first, second, allowed)
    difference.disagreeing               # rows

Both backends were verified to be within a bound of the truth, so they differ by the sum of both bounds at
most. For INT8 and half precision no such bounds are used: only decisions are compared, and whether numbers
are finite.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from torchport_runtime.signature import Signature, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """Maximum differences of two verified backends, by output.

    The larger one counts of `absolute` and of `relative` times the row's largest value. An output that is
    in neither has no limit.
    """

    absolute: Mapping[str, float] = field(default_factory=dict)
    relative: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_certificate(cls, path: Path, graph: str, backends: Collection[str]) -> Allowed:
        """Twice a certificate's float32 bounds of real samples; empty without one."""
        try:
            results = json.loads(path.read_text(encoding="utf-8"))["results"]
        except (OSError, ValueError, KeyError):
            return cls()
        absolute: dict[str, float] = {}
        relative: dict[str, float] = {}
        for result in results:
            mine = result["graph"] == graph and result["backend"] in backends
            if not mine or result.get("precision", "float32") != "float32":
                continue
            for row in result["comparisons"]:
                bound, scale = _number(row.get("bound")), _number(row.get("scale"))
                if not row["case"].startswith("sample") or bound is None or not scale:
                    continue
                name = row["output"]
                absolute[name] = max(absolute.get(name, 0.0), 2 * bound)
                relative[name] = max(relative.get(name, 0.0), 2 * bound / scale)
        return cls(absolute=absolute, relative=relative)

    def of_rows(self, output: str, values: np.ndarray) -> np.ndarray:
        """The limit for each row of `values` [rows, numbers]; infinite if unknown."""
        if output not in self.absolute:
            return np.full(len(values), np.inf)
        scale = np.abs(values).max(axis=1, initial=0.0, where=np.isfinite(values))
        limit: np.ndarray = np.maximum(self.absolute[output], self.relative[output] * scale)
        return limit


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The result of a comparison of `rows` rows.

    `disagreeing`: number of rows that disagree. `greatest`: maximum difference of two numbers, infinite if
    only one is finite. `worst`: index of the row that differs most, disagreeing rows first.
    """

    rows: int
    disagreeing: int
    greatest: float
    worst: int


def compare(
    signature: Signature,
    first: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    allowed: Allowed,
) -> Difference:
    """Compare `second` with `first`, row by row.

    Without a batch dimension, the whole run is one row.
    """
    rows = len(next(iter(first.values()))) if signature.batch_dim is not None else 1
    disagrees = np.zeros(rows, bool)
    distance = np.zeros(rows)
    for name, spec in signature.outputs.items():
        one, other = first[name], second.get(name)
        if other is None or other.shape != one.shape or other.dtype != one.dtype:
            return Difference(rows=rows, disagreeing=rows, greatest=float("inf"), worst=0)
        if one.dtype.kind != "f":
            unlike = (one != other).reshape(rows, -1)
            disagrees |= unlike.any(axis=1)
            continue
        apart = _distances(one, other).reshape(rows, -1)
        furthest = apart.max(axis=1, initial=0.0)
        limit = allowed.of_rows(name, one.reshape(rows, -1).astype(np.float64))
        disagrees |= (furthest > limit) | np.isinf(furthest)
        disagrees |= _other_decisions(spec, one, other, limit).reshape(rows, -1).any(axis=1)
        distance = np.maximum(distance, furthest)
    return Difference(
        rows=rows,
        disagreeing=int(disagrees.sum()),
        greatest=float(distance.max(initial=0.0)),
        worst=int(np.lexsort((distance, disagrees))[-1]) if rows else 0,
    )


def _distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        apart = np.abs(one.astype(np.float64) - other.astype(np.float64))
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    return np.where(same, 0.0, np.where(np.isfinite(apart), apart, np.inf))


def _other_decisions(spec: TensorSpec, one: np.ndarray, other: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """A mask of the places at which two outputs decide differently.

    A decision is the largest class along a last axis of fixed size, or the sign of a single number. Near
    ties, which a difference within the limit can turn over, do not count.
    """
    classes = spec.shape[-1] if len(spec.shape) > 1 else 1
    near = np.where(np.isfinite(limit), limit, 0.0).reshape(-1, *(1,) * (one.ndim - 1))
    if classes == 1:
        signs: np.ndarray = (np.sign(one) != np.sign(other)) & (np.abs(one) > near)
        return signs
    if not isinstance(classes, int):
        return np.zeros(one.shape, bool)
    chosen = other.argmax(axis=-1)[..., None]
    lead = one.max(axis=-1, keepdims=True) - np.take_along_axis(one, chosen, axis=-1)
    with np.errstate(invalid="ignore"):
        overturned: np.ndarray = lead > near
    return overturned


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else None
