"""What a `Shadow` and its process say to each other: tuples and dicts of what Python and numpy have.

Not objects of our own: a process that serves several models has several copies of this package, and what
is unpickled there would be of any of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

Arrays: TypeAlias = dict[str, np.ndarray]

SampledRows: TypeAlias = tuple[str, Arrays, Arrays]
"""Graph, inputs and outputs of rows that the first backend has answered."""

Start: TypeAlias = dict[str, Any]
"""The first message: `folder`, `options` and `signatures` as JSON has them, `bounded_by` (the backends whose
bounds hold between the two), `examples`, `processor_s` (what one look may take), `callers_wait` (whether it
loads while requests are served, which it is not to hold up). The answer is "", or why it cannot be."""


class ShadowResult(NamedTuple):
    """The answer to a sample: rows, how many of them disagree, the greatest difference, and why the second
    backend gave nothing, if it did not. It travels as a plain tuple."""

    rows: int
    disagreeing: int
    greatest: float
    problem: str = ""
