"""How far two backends' outputs for the same rows are apart, and whether that is more than rounding.

    allowed = Allowed.of_certificate(folder / "parity.json", "main", ["onnxruntime", "torchscript"])
    difference = compare(signature, first, second, allowed)
    difference.disagreeing               # rows

Both backends were proven to be within a bound of the truth, and so within the sum of both of each other.
Of INT8 nothing of that kind is known: there only decisions count.
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
    """What two proven backends may differ by, by output: `absolute`, or `relative` to a row's greatest value,
    whichever is more. An output that is in neither has no limit."""

    absolute: Mapping[str, float] = field(default_factory=dict)
    relative: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_certificate(cls, path: Path, graph: str, backends: Collection[str]) -> Allowed:
        """The bounds that float32 outputs of real samples were held to; none without a certificate."""
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
        """The limit for each row of `values` [rows, numbers]; infinite where none is known."""
        if output not in self.absolute:
            return np.full(len(values), np.inf)
        scale = np.abs(values).max(axis=1, initial=0.0, where=np.isfinite(values))
        limit: np.ndarray = np.maximum(self.absolute[output], self.relative[output] * scale)
        return limit


@dataclass(frozen=True, kw_only=True)
class Difference:
    """`rows` were compared. `greatest` is the largest difference of two numbers, infinite where only one of
    them is finite; `worst` is the row that has it."""

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
    """Hold `second` against `first`, row by row: all of one run is a row where the graph has no batch."""
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
    """Where the class that is chosen, of the last axis if it is a number of them, or the sign of a single
    number is another. A near tie, which differences within the limit may turn over, is no decision."""
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
