"""The trained model itself as a backend: what every export is compared with."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport_runtime import Signature
from torchport_runtime.backends import named_outputs

if TYPE_CHECKING:
    import torch
    from torch import nn


class EagerBackend:
    """Runs an `nn.Module` in float32 as it is, or a copy of it in float64.

    In float64 the model's parameters, its floating inputs and torch's default dtype are double, so
    that tensors which `forward` makes for itself are too.
    """

    device = "cpu"
    provider = "torch eager"

    def __init__(self, module: nn.Module, signature: Signature, *, double: bool = False) -> None:
        self._module = copy.deepcopy(module).double() if double else module
        self._module.eval()
        self._signature = signature
        self._double = double

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        arguments = [self._tensor(inputs[name]) for name in self._signature.inputs]
        with torch.inference_mode(), _default_dtype(torch.float64 if self._double else None):
            values = named_outputs(self._module(*arguments), list(self._signature.outputs))
        return {name: value.cpu().numpy() for name, value in values.items()}

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        import torch

        tensor = torch.from_numpy(np.array(array, order="C"))
        return tensor.double() if self._double and tensor.is_floating_point() else tensor


@contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    if dtype is not None:
        torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
