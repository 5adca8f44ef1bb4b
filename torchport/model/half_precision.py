"""Runs a model in float16 or bfloat16 behind its float32 interface.

    half = in_half(module, signature, "bfloat16")
    half(torch.zeros(1, 3))              # float32 in, float32 out, bfloat16 between

The casts are part of the graph, so that signatures, handlers and clients see no change.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torchport.model.parameters import with_parameters
from torchport_runtime import Signature
from torchport_runtime.backends.backend import named_outputs

if TYPE_CHECKING:
    import torch
    from torch import nn


def in_half(module: nn.Module, signature: Signature, precision: str, *, script: bool = False) -> nn.Module:
    """A copy of the module with its floating parameters and buffers in `precision`.

    Floating inputs are cast on their way in. Outputs are a tuple in the signature's order, or a single
    tensor, with floating ones in the signature's dtypes. With `script`, the copy is compiled by
    TorchScript first, so that its branches stay branches when the whole is traced.
    """
    import torch
    from torch import nn

    dtype = half_dtype(precision)
    inner: Any = copy.deepcopy(module)
    inner = (inner.half() if dtype == torch.float16 else inner.bfloat16()).eval()
    if script:
        inner = torch.jit.script(inner)
    names = list(signature.outputs)
    wanted = [getattr(torch, spec.dtype) for spec in signature.outputs.values()]

    class HalfPrecision(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = inner

        def forward(self, *inputs: Any) -> Any:
            cast = [value.to(dtype) if value.is_floating_point() else value for value in inputs]
            outputs = named_outputs(self.model(*cast), names).values()
            given = [
                value.to(to) if value.is_floating_point() else value
                for value, to in zip(outputs, wanted, strict=True)
            ]
            return given[0] if len(given) == 1 else tuple(given)

    with_parameters(HalfPrecision.forward, signature.inputs)
    return HalfPrecision().eval()


def half_dtype(precision: str) -> torch.dtype:
    import torch

    return {"float16": torch.float16, "bfloat16": torch.bfloat16}[precision]


@contextmanager
def default_dtype(dtype: Any) -> Iterator[None]:
    """Set torch's default dtype, also of tensors that `forward` makes.

    None changes nothing.
    """
    import torch

    before = torch.get_default_dtype()
    if dtype is not None:
        torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
