"""Figures of an array's distance from the truth, made for readers.

figures(np.float32([1.0, 2.0]), np.array([1.0, 2.0000002]), scale=2.0)
# {"p50": 1e-07, "p99": 1.98e-07, "relative": 1e-07, "ulp": 0.0}
"""

from __future__ import annotations

from typing import Any

import numpy as np

NOT_TINY = 1e-3
"""Minimum share of the output's scale for relative errors and ULP distances. Smaller values are left out:
they remain when larger ones cancel, and their last digits are rounding error in any precision."""

QUANTILES = (50, 99)

_ORDERED = {2: np.int16, 4: np.int32, 8: np.int64}


def figures(array: np.ndarray, truth: np.ndarray, scale: float) -> dict[str, float]:
    """Error figures of `array`, floating, against `truth` of the same shape.

    They are quantiles of the absolute error, the maximum relative error, and the maximum distance in
    units in the last place of the array's dtype. Values that are not finite in either are left out.
    Figures have three significant digits.
    """
    both = np.isfinite(array) & np.isfinite(truth)
    got, wanted = array[both], truth[both]
    if not got.size:
        return {**{f"p{q}": 0.0 for q in QUANTILES}, "relative": 0.0, "ulp": 0.0}
    error = np.abs(got.astype(np.float64) - wanted)
    large = np.abs(wanted) > NOT_TINY * scale
    values = {f"p{q}": value for q, value in zip(QUANTILES, np.percentile(error, QUANTILES), strict=True)}
    values["relative"] = (error[large] / np.abs(wanted[large])).max(initial=0.0)
    values["ulp"] = ulp_distance(got[large], wanted[large]).max(initial=0.0)
    return {name: short(float(value)) for name, value in values.items()}


def absolute_error(array: np.ndarray, expected: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Absolute error of each value, in float64.

    It is 0 for values that are not judged, and Inf for judged values that are not finite.
    """
    error = np.zeros(array.shape)
    with np.errstate(invalid="ignore"):
        error[judged] = np.abs(array[judged].astype(np.float64) - expected[judged])
    error[judged & ~np.isfinite(array)] = np.inf
    return error


def same_values(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays hold the same values; NaN counts as equal to NaN."""
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def ulp_distance(array: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Number of floats of the array's dtype between it and the truth.

    The truth is rounded to that dtype first.
    """
    limits = np.finfo(array.dtype)
    rounded = np.clip(truth, limits.min, limits.max).astype(array.dtype)
    distance: np.ndarray = np.abs(_place(array) - _place(rounded))
    return distance


def short(value: float) -> float:
    """Round to three significant digits, which a second run gives again."""
    return float(f"{value:.3g}")


def _place(array: np.ndarray) -> Any:
    """Rank of each number among all numbers of its dtype; 0 has rank 0.

    The bits of positive floats, read as integers, are in the order of the floats.
    """
    bits = np.ascontiguousarray(np.abs(array)).view(_ORDERED[array.dtype.itemsize])
    # As float64: places of float64 numbers of opposite signs differ by more than an int64 holds.
    return np.copysign(bits.astype(np.float64), array)
