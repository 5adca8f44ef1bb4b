"""Compares an export's decisions with the trained model's: first class, first five, sign.

    decisions = Decisions()
    wrong = decisions.compare("sample 0", "logits", ("batch", 10), array, eager, truth, bound)

Only clear decisions count. Near ties, which rounding may flip, are counted separately, as are decisions
in which eager float32 itself differs from float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

TOP = 5
FIRST = 10
"""Maximum number of differing decisions that the certificate names."""


class Decisions:
    """Counts of one graph's decisions on one backend, over all cases."""

    def __init__(self) -> None:
        self._counts = {
            kind: {"compared": 0, "agreed": 0, "ties": 0} for kind in ("argmax", f"top{TOP}", "sign")
        }
        self._differing: list[dict[str, Any]] = []

    def compare(
        self,
        case: str,
        output: str,
        shape: Sequence[int | str],
        array: np.ndarray,
        eager: np.ndarray,
        expected: np.ndarray,
        bound: float,
    ) -> list[str]:
        """Count the decisions of one output. Returns what differs.

        A class is decided over the last axis of `shape`, the signature's, if its size is fixed. A single
        number decides by its sign.
        """
        last = shape[-1] if shape else 1
        if not array.size:
            return []
        if last == 1 or len(shape) == 1:
            usable = np.isfinite(expected) & np.isfinite(eager) & (np.sign(eager) == np.sign(expected))
            clear = usable & (np.abs(expected) > bound)
            return self._count("sign", case, output, clear, np.sign(array) == np.sign(expected))
        if not isinstance(last, int):
            return []
        ranked = np.sort(np.where(np.isfinite(expected), expected, -np.inf), axis=-1)
        usable = np.isfinite(expected).all(axis=-1) & np.isfinite(eager).all(axis=-1)

        def clear_after(count: int) -> np.ndarray:
            """Mask of rows whose last chosen class is clearly ahead of the next."""
            with np.errstate(invalid="ignore"):
                ahead: np.ndarray = ranked[..., -count] - ranked[..., -count - 1] > 2 * bound
            return ahead

        first = [a.argmax(axis=-1) for a in (array, eager, expected)]
        clear = usable & clear_after(1) & (first[1] == first[2])
        problems = self._count("argmax", case, output, clear, first[0] == first[2])
        if last > TOP:
            sets = [_first_classes(a) for a in (array, eager, expected)]
            clear = usable & clear_after(TOP) & (sets[1] == sets[2]).all(axis=-1)
            problems += self._count(f"top{TOP}", case, output, clear, (sets[0] == sets[2]).all(axis=-1))
        return problems

    def _count(self, kind: str, case: str, output: str, clear: np.ndarray, same: np.ndarray) -> list[str]:
        counts = self._counts[kind]
        counts["compared"] += int(clear.sum())
        counts["agreed"] += int((same & clear).sum())
        counts["ties"] += int((~clear).sum())
        differs = np.argwhere(clear & ~same)
        if not len(differs):
            return []
        rows = sorted({int(at[0]) if len(at) else 0 for at in differs})
        for row in rows[: FIRST - len(self._differing)]:
            self._differing.append({"kind": kind, "case": case, "output": output, "row": row})
        return [
            f"output {output!r}: {len(differs)} of {int(clear.sum())} decisions ({kind}) differ, the first "
            f"in row {rows[0]}"
        ]

    def summary(self) -> dict[str, Any]:
        """Counts for the certificate: argmax first, then the other kinds of decisions."""
        counted = {kind: self._with_rate(counts) for kind, counts in self._counts.items()}
        return {**counted.pop("argmax"), **counted, "first_differing": self._differing}

    def _with_rate(self, counts: dict[str, int]) -> dict[str, Any]:
        compared = counts["compared"]
        return {**counts, "rate": counts["agreed"] / compared if compared else None}


def _first_classes(array: np.ndarray) -> np.ndarray:
    """Indices of the `TOP` best classes along the last axis, in ascending order."""
    return np.sort(np.argpartition(array, -TOP, axis=-1)[..., -TOP:], axis=-1)
