"""Runs the trained model itself, with which every export is compared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport.model.half_precision import default_dtype, half_dtype, in_half
from torchport_runtime import Signature
from torchport_runtime.backends.backend import named_outputs

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class ModuleOutput:
    """Output of one call of a module.

    `path` is its name in the model, "" the model itself; `call` counts from 1. Of several tensors
    `value` is the first.
    """

    path: str
    kind: str
    call: int
    value: np.ndarray


class EagerBackend:
    """Runs an `nn.Module` in float32, or a copy in float64 or half precision.

    In float64 the model's parameters, its floating inputs and torch's default dtype are double, so that
    tensors which `forward` makes for itself are too. In half precision the same holds, except for the
    inputs and outputs, which keep their dtypes (`half_precision`).
    """

    device = "cpu"
    provider = "torch eager"

    def __init__(
        self,
        module: nn.Module,
        signature: Signature,
        *,
        double: bool = False,
        precision: str = "float32",
    ) -> None:
        import torch

        self._dtype = torch.float64 if double else None
        self._module = copy.deepcopy(module).double() if double else module
        if precision != "float32":
            self._dtype, self._module = half_dtype(precision), in_half(module, signature, precision)
        self._module.eval()
        self._signature = signature
        self._double = double

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        arguments = [self._tensor(inputs[name]) for name in self._signature.inputs]
        with torch.inference_mode(), default_dtype(self._dtype):
            values = named_outputs(self._module(*arguments), list(self._signature.outputs))
        return {name: value.cpu().numpy() for name, value in values.items()}

    def run_watched(self, inputs: Mapping[str, np.ndarray]) -> list[ModuleOutput]:
        """Outputs of the model's modules for these inputs, in order of completion.

        A module that is called twice is there twice; one that gives no tensor is not.
        """
        seen: list[ModuleOutput] = []
        counts: dict[str, int] = {}

        def watch(path: str, kind: str) -> Any:
            def hook(module: Any, arguments: Any, output: Any) -> None:
                value = _first_tensor(output)
                call = counts[path] = counts.get(path, 0) + 1
                if value is not None:
                    seen.append(ModuleOutput(path, kind, call, value.detach().cpu().numpy().copy()))

            return hook

        handles = [
            module.register_forward_hook(watch(path, type(module).__name__))
            for path, module in self._module.named_modules()
        ]
        try:
            self.run(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        import torch

        tensor = torch.from_numpy(np.array(array, order="C"))
        return tensor.double() if self._double and tensor.is_floating_point() else tensor


def perturbed_module(module: nn.Module, epsilons: int = 1, seed: int = 0) -> nn.Module:
    """A copy of the module with every parameter perturbed.

    Each is off by `epsilons` machine epsilons, up or down at random.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    perturbed = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in perturbed.parameters():
            if parameter.is_floating_point():
                sign = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
                share = epsilons * torch.finfo(parameter.dtype).eps
                parameter.mul_(1 + share * sign.to(parameter.dtype).to(parameter.device))
    return perturbed


def _first_tensor(value: Any) -> Any:
    import torch

    if torch.is_tensor(value):
        return value
    parts = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    )
    return next((part for part in parts if torch.is_tensor(part)), None)
