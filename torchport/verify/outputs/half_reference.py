"""Reference of a half-precision export: float64 outputs and bounds for that precision.

    reference = HalfReference(module, signature, float32_reference, "bfloat16")
    reference.truth("sample 0", "logits").bound          # a thousand times float32's, and more

The bound has float32's formula, with eager in this precision as the error that cannot be avoided. It is
the larger of 10 times eager's error on the same inputs and 16 of this precision's epsilons of the
output's scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport.model.eager import EagerBackend
from torchport.model.half_precision import half_dtype
from torchport.verify.outputs.cases import Case
from torchport.verify.outputs.preconditions import USELESS
from torchport.verify.outputs.reference import EAGER_MULTIPLE, SCALE_EPSILONS, Reference, Truth
from torchport_runtime import Signature

if TYPE_CHECKING:
    from torch import nn


class HalfReference(Reference):
    """Runs the trained model in half precision on the cases of float32.

    `problems` are reasons why nothing can be verified in this precision: the model does not run in it,
    overflows on real inputs, or is so far off there that it is another model.
    """

    def __init__(self, module: nn.Module, signature: Signature, full: Reference, precision: str) -> None:
        import torch

        self._signature, self._module, self._precision = signature, module, precision
        limits = torch.finfo(half_dtype(precision))
        self._epsilon, self._tiny = limits.eps, limits.tiny
        self._full, self._double, self.kind = full, full._double, full.kind
        self.refused = {}
        self.problems: list[str] = []
        self._figures = {}
        self._otherwise = []
        self._eager = self._run_half(full.cases)
        self.cases = [case for case in full.cases if case.name in self._eager]
        self._truth = {
            case.name: {name: self._measure_half(case.name, name) for name in self._eager[case.name]}
            for case in self.cases
        }
        self._bound_lucky_cases()
        real = [case for case in self.cases if case.is_sample]
        if real:
            self._bound_channels(real, [self._double])
        self.problems += self._far_off(real)

    @property
    def bound_of(self) -> dict[str, float]:
        return {**super().bound_of, "epsilon": self._epsilon}

    def overflowed(self, case: str, output: str) -> np.ndarray:
        """Mask of values that are finite in the truth but not in this precision."""
        lost = ~np.isfinite(self._eager[case][output])
        beyond: np.ndarray = lost & np.isfinite(self._full.truth(case, output).value)
        return beyond

    def not_finite(self, case: str, output: str) -> np.ndarray:
        """Mask of values that are finite neither in this precision nor in float32."""
        eager = self._eager[case][output]
        if eager.dtype.kind != "f":
            return np.zeros(eager.shape, bool)
        lost: np.ndarray = self._full.not_finite(case, output) & ~np.isfinite(eager)
        return lost

    def _run_half(self, cases: Sequence[Case]) -> dict[str, dict[str, np.ndarray]]:
        backend = EagerBackend(self._module, self._signature, precision=self._precision)
        outputs = {}
        for case in cases:
            try:
                outputs[case.name] = backend.run(case.inputs)
            except Exception as err:  # The user's forward, or an operator that has no such kernel.
                reason = f"{type(err).__name__}: {str(err)[:200]}"
                if case.optional:
                    self.refused[case.name] = f"in {self._precision}: {reason}"
                else:
                    self.problems.append(f"{case.name}: eager {self._precision} does not run here: {reason}")
        return outputs

    def _measure_half(self, case: str, name: str) -> Truth:
        """Expected value of one output; its bound follows the precision's error and epsilon."""
        truth, eager = self._double[case][name], self._eager[case][name]
        measured = self._measure(name, truth, eager, [truth])
        if eager.dtype.kind != "f":
            # A choice between equals may fall otherwise than in float64; `Comparison` takes either.
            return Truth(truth.astype(eager.dtype), 0.0, 0.0, 0.0)
        # The scale is the truth's, where this precision has no finite number left, too.
        scale = max(measured.scale, float(np.abs(truth[np.isfinite(truth)]).max(initial=0.0)))
        bound = self._bound(measured.eager_error, scale, eager.dtype)
        return Truth(measured.value, measured.eager_error, scale, bound)

    def _bound(self, eager_error: float, scale: float, dtype: np.dtype[Any]) -> float:
        return max(EAGER_MULTIPLE * eager_error, SCALE_EPSILONS * self._epsilon * max(scale, self._tiny))

    def _far_off(self, samples: Sequence[Case]) -> list[str]:
        problems = []
        for case in samples:
            for name, eager in self._eager[case.name].items():
                where = f"{case.name}: output {name!r}: eager {self._precision} itself"
                if eager.dtype.kind != "f":
                    continue
                lost = int(self.overflowed(case.name, name).sum())
                truth = self._truth[case.name][name]
                if lost:
                    problems.append(
                        f"{where} leaves its range on a real input ({lost} of {eager.size} values): "
                        "bfloat16 has float32's"
                    )
                elif truth.eager_error > USELESS * truth.scale > 0:
                    problems.append(
                        f"{where} is {truth.eager_error:.3g} off on a real input, of a scale of "
                        f"{truth.scale:.3g}: in this precision it is another model"
                    )
        return problems
