"""What a backend's outputs are held against: the trained model in float64, and how far eager float32
itself is from it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from torchport.cases import Case
from torchport.eager import EagerBackend
from torchport_runtime import Signature

if TYPE_CHECKING:
    from torch import nn

EAGER_MULTIPLE = 10
SCALE_EPSILONS = 16
"""The bound on an output's error, in its max-norm, is the greater of `EAGER_MULTIPLE` times eager
float32's own error on the same inputs and `SCALE_EPSILONS` machine epsilons of the output's scale."""

BATCH_ROWS = 8
"""Rows that are compared in one batch against one by one."""


@dataclass(frozen=True)
class Truth:
    """One output of one case. `bound`, `eager_error` and `scale` are in the output's max-norm."""

    value: np.ndarray
    eager_error: float
    scale: float
    bound: float


class Reference:
    """Runs the trained model on every case, in float32 and in float64.

    `kind` is "float64", or says why it is float32. In that case eager's own error is estimated by the
    change that it shows when weights and inputs are moved by a float32 epsilon. `problems` are those
    of the model itself: rows of one batch that change each other's answers.
    """

    def __init__(self, module: nn.Module, signature: Signature, cases: Sequence[Case]) -> None:
        self._signature = signature
        self._eager = {c.name: EagerBackend(module, signature).run(c.inputs) for c in cases}
        self.kind, truths = self._truths(module, cases)
        moved = None if self.kind == "float64" else self._moved(module, cases)
        self._truth = {
            case.name: {
                name: self._measure(
                    truths[case.name][name],
                    self._eager[case.name][name],
                    (moved or truths)[case.name][name],
                )
                for name in signature.outputs
            }
            for case in cases
        }
        self.problems = self._rows_that_mix(module, cases)

    def eager(self, case: str, output: str) -> np.ndarray:
        """The output in eager float32."""
        return self._eager[case][output]

    def truth(self, case: str, output: str) -> Truth:
        """The output in float64, and the bound on a backend's distance from it."""
        return self._truth[case][output]

    def _truths(
        self, module: nn.Module, cases: Sequence[Case]
    ) -> tuple[str, dict[str, dict[str, np.ndarray]]]:
        try:
            backend = EagerBackend(module, self._signature, double=True)
            return "float64", {case.name: backend.run(case.inputs) for case in cases}
        except Exception as err:  # Whatever keeps the user's forward from running in float64 is the reason.
            reason = str(err).splitlines()[0][:200] if str(err) else type(err).__name__
            return f"float32: the model does not run in float64 ({reason})", self._eager

    def _moved(self, module: nn.Module, cases: Sequence[Case]) -> dict[str, dict[str, np.ndarray]]:
        import torch

        epsilon = float(np.finfo(np.float32).eps)
        generator = torch.Generator().manual_seed(0)
        moved = copy.deepcopy(module)
        with torch.no_grad():
            for parameter in moved.parameters():
                if parameter.is_floating_point():
                    sign = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
                    parameter.mul_(1 + epsilon * sign)
        backend = EagerBackend(moved, self._signature)
        return {
            case.name: backend.run(
                {
                    n: a * a.dtype.type(1 + epsilon) if a.dtype.kind == "f" else a
                    for n, a in case.inputs.items()
                }
            )
            for case in cases
        }

    @staticmethod
    def _measure(truth: np.ndarray, eager: np.ndarray, other: np.ndarray) -> Truth:
        """`other` is what eager's own error is measured against: the truth, or a moved model's output."""
        if eager.dtype.kind != "f":
            return Truth(truth, 0.0, 0.0, 0.0)
        finite = np.isfinite(eager) & np.isfinite(truth) & np.isfinite(other)
        value = np.where(np.isfinite(truth), truth, eager).astype(np.float64)
        difference = np.abs(eager[finite].astype(np.float64) - other[finite])
        eager_error = float(difference.max(initial=0.0))
        scale = float(np.abs(value[finite]).max(initial=0.0))
        kind = np.finfo(eager.dtype)
        floor = SCALE_EPSILONS * max(float(kind.eps) * scale, float(kind.tiny))
        return Truth(value, eager_error, scale, max(EAGER_MULTIPLE * eager_error, floor))

    def _rows_that_mix(self, module: nn.Module, cases: Sequence[Case]) -> list[str]:
        """A row's answer must not depend on its batch mates: a server chooses those."""
        if self._signature.batch_dim is None:
            return []
        backend = EagerBackend(module, self._signature)
        problems = []
        for case in cases:
            if not case.name.startswith("sample"):
                continue
            rows = min(BATCH_ROWS, len(next(iter(case.inputs.values()))))
            singles = [backend.run({n: a[i : i + 1] for n, a in case.inputs.items()}) for i in range(rows)]
            for name in self._signature.outputs:
                truth = self.truth(case.name, name)
                alone = np.concatenate([single[name] for single in singles]).astype(np.float64)
                together = truth.value[:rows].astype(np.float64)
                if alone.shape != together.shape:
                    problems.append(f"{case.name}: output {name!r} changes its shape with the batch")
                    continue
                finite = np.isfinite(alone) & np.isfinite(together)
                worst = float(np.abs(alone - together)[finite].max(initial=0.0))
                if worst > truth.bound:
                    problems.append(
                        f"{case.name}: output {name!r} of a row differs by {worst:.3g} between alone and "
                        f"in a batch of {len(together)}: does forward mix rows?"
                    )
        return problems
