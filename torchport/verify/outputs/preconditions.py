"""Finds faults of the model that make every comparison worthless.

for problem in problems_of(module, signature, reference):
    print(problem)    # sample 0: output 'y' of a row differs by 0.3 between alone and in a batch of 8: ...
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from torchport.model.eager import EagerBackend
from torchport.verify.outputs.cases import BATCH_ROWS
from torchport.verify.outputs.error_statistics import same_values
from torchport.verify.outputs.reference import Reference
from torchport_runtime import Signature

if TYPE_CHECKING:
    from torch import nn

USELESS = 0.05
"""Maximum bound, as a share of the output's scale. A larger bound verifies nothing."""


def problems_of(module: nn.Module, signature: Signature, reference: Reference) -> Iterator[str]:
    """Faults of the model itself, found without an export.

    Answers to real inputs that change from run to run, that are NaN or all rounding error; rows of one
    batch that change each other's answers.
    """
    backend = EagerBackend(module, signature)
    yield from _unusable(backend, reference)
    if signature.batch_dim is not None:
        yield from _rows_that_mix(backend, signature, reference)


def _unusable(backend: EagerBackend, reference: Reference) -> Iterator[str]:
    for case in reference.cases:
        if not case.is_sample:
            continue
        for name, again in backend.run(case.inputs).items():
            where = f"{case.name}: output {name!r}"
            first = reference.eager(case.name, name)
            if not same_values(first, again):
                yield (
                    f"{where} is another each time for the same input: dropout or noise inside forward? "
                    "Draw noise in the handler, use nn.Dropout, which eval() turns off"
                )
                continue
            if first.dtype.kind != "f":
                continue
            # Inf may be meant, as in masked logits; NaN never is, nor is nothing but Inf.
            if np.isnan(first).any() or not np.isfinite(first).any():
                yield f"{where} holds NaN, or nothing finite, for a real input"
            truth = reference.truth(case.name, name)
            if truth.bound > USELESS * truth.scale > 0:
                yield (
                    f"{where}: eager float32 itself is {truth.eager_error:.3g} off, of a scale of "
                    f"{truth.scale:.3g}: nothing can be proven of so ill-conditioned a model"
                )


def _rows_that_mix(backend: EagerBackend, signature: Signature, reference: Reference) -> Iterator[str]:
    """Rows whose answer depends on their batch mates, which a server chooses."""
    for case in reference.cases:
        if not case.compares_rows:
            continue
        rows = min(BATCH_ROWS, case.rows)
        singles = [backend.run({n: a[i : i + 1] for n, a in case.inputs.items()}) for i in range(rows)]
        for name in signature.outputs:
            truth = reference.truth(case.name, name)
            alone = np.concatenate([single[name] for single in singles]).astype(np.float64)
            together = truth.value[:rows].astype(np.float64)
            if alone.shape != together.shape:
                yield f"{case.name}: output {name!r} changes its shape with the batch"
                continue
            finite = np.isfinite(alone) & np.isfinite(together)
            worst = float(np.abs(alone - together)[finite].max(initial=0.0))
            if worst <= truth.bound:
                continue
            said = (
                f"{case.name}: output {name!r} of a row differs by {worst:.3g} between alone and in a batch "
                f"of {len(together)}: does forward mix rows?"
            )
            if reference.eager(case.name, name).dtype.kind != "f":
                said += (
                    " Or do its sums, which round otherwise there, turn over a rounding or a choice between "
                    "equals? Such a step belongs into the handler"
                )
            yield said
