"""Messages between a `Shadow` and its process.

They are tuples and dicts of Python's and numpy's types. Classes of this package are not used: a process
that serves several models has several copies of the package, and unpickling could pick any of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

Arrays: TypeAlias = dict[str, np.ndarray]

SampledRows: TypeAlias = tuple[str, Arrays, Arrays]
"""Graph, inputs and outputs of rows that the first backend has answered."""

Start: TypeAlias = dict[str, Any]
"""The first message: `folder`, `options` and `signatures` as in JSON, `bounded_by` (backends whose
certified bounds apply), `examples`, `processor_s` (maximum processor seconds of one comparison),
`callers_wait` (whether requests are served while the backend loads). The answer is "", or why loading
failed."""


class ShadowResult(NamedTuple):
    """The result of comparing sampled rows.

    It holds the number of rows, the number that disagree, the maximum difference, and the second backend's
    error, if it failed. It is sent as a plain tuple.
    """

    rows: int
    disagreeing: int
    greatest: float
    problem: str = ""
