"""Checks that the eager model returns what the signature says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from torchport.errors import ExportError
from torchport.model.eager import EagerBackend
from torchport.recipe.contract import Recipe
from torchport.recipe.user_code import where_in_user_code
from torchport_runtime import Signature

if TYPE_CHECKING:
    from torch import nn


def check_eager_outputs(
    recipe: Recipe,
    graph: str,
    module: nn.Module,
    signature: Signature,
    inputs: dict[str, np.ndarray],
    precision: str = "float32",
) -> None:
    """Compare the model's outputs with the signature, before anything is exported.

    Raises:
        ExportError: forward fails on inputs of the signature's shapes, or returns something else.
    """
    try:
        outputs = EagerBackend(module, signature, precision=precision).run(inputs)
        signature.check_outputs(outputs)
    except Exception as err:  # forward is the user's code: whatever it raises is reported with its line.
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        if precision != "float32":
            raise ExportError(
                f"{where_in_user_code(err, recipe)}: {type(module).__name__} does not run in {precision} on "
                f"this machine's CPU: {str(err)[:400] or type(err).__name__}: take {precision} out of the "
                "recipe's precisions, or make it one of its optional_precisions"
            ) from err
        raise ExportError(
            f"{where_in_user_code(err, recipe)}: {type(module).__name__} on inputs {shapes}: "
            f"{str(err)[:400] or type(err).__name__} ({_likely_reason(err, signature)})"
        ) from err


def _likely_reason(err: Exception, signature: Signature) -> str:
    unbounded = [
        name
        for name, spec in signature.inputs.items()
        if spec.numpy_dtype.kind in "iu" and (spec.low is None or spec.high is None)
    ]
    if isinstance(err, IndexError) and unbounded:
        return (
            f"which integers may input {unbounded[0]!r} hold? Its TensorSpec says so: low=0 and high=999 "
            "for an embedding of 1,000 rows"
        )
    return "the recipe's inputs and outputs are to be what forward takes and returns"
