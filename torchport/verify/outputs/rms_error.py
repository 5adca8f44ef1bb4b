"""Compares the RMS error of a half-precision export with eager's, over all inputs.

    typical = TypicalError(epsilon)
    typical.add("logits", array, eager, truth)           # for every case
    typical.problems()                                   # [] if no output exceeds its maximum

The bound on the maximum error is wide in these precisions: 16 epsilons of bfloat16 are an eighth of an
output's scale, and a defect of a few per cent would pass. Rounding errors differ from value to value and
from input to input. A defect pulls one way, and shows in their mean square.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

MULTIPLE = 4
"""Maximum RMS error, as a multiple of eager's. Another order of summation, or wider intermediates, change
it by less than half on what was measured (ONNX Runtime, TorchScript and torch.export on the CPU)."""

MIN_EPSILONS = 1
"""RMS error that is always allowed, in epsilons of the output's own RMS: rounding the outputs alone may
cost as much, if eager happens to be exact."""


class TypicalError:
    """Sums of squared errors by output.

    Each case counts relative to its own scale, so that large inputs do not outweigh others.
    """

    def __init__(self, epsilon: float) -> None:
        self._epsilon = epsilon
        self._sums: dict[str, np.ndarray] = {}

    def add(self, output: str, array: np.ndarray, eager: np.ndarray, truth: np.ndarray) -> None:
        """Add one case's values; non-finite ones are left to other checks."""
        finite = np.isfinite(array) & np.isfinite(eager) & np.isfinite(truth)
        wanted = truth[finite].astype(np.float64)
        size = float(np.sqrt(np.mean(wanted**2))) if wanted.size else 0.0
        if not size:
            return
        of = [np.mean(((given[finite] - wanted) / size) ** 2) for given in (array, eager)]
        self._sums[output] = self._sums.get(output, np.zeros(3)) + np.array([*of, 1.0])

    def summary(self) -> dict[str, dict[str, float]]:
        """Relative RMS errors of backend and eager, by output."""
        return {
            name: {key: float(f"{value:.3g}") for key, value in self._figures(name).items()}
            for name in self._sums
        }

    def problems(self) -> Iterator[str]:
        for name in self._sums:
            found = self._figures(name)
            if found["error"] > found["allowed"]:
                yield (
                    f"output {name!r}: over all cases its errors' root mean square is {found['error']:.3g} "
                    f"of the output's, eager's in this precision {found['eager']:.3g}; allowed is "
                    f"{found['allowed']:.3g}: this is not rounding"
                )

    def _figures(self, name: str) -> dict[str, float]:
        ours, eager, cases = self._sums[name]
        error, own = float(np.sqrt(ours / cases)), float(np.sqrt(eager / cases))
        allowed = max(MULTIPLE * own, MIN_EPSILONS * self._epsilon)
        return {"error": error, "eager": own, "allowed": allowed}
