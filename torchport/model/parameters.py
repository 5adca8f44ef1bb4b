"""Names the parameters of a module that wraps another one.

    with_parameters(Wrapped.forward, ["ids", "mask"])

torch.export reads a forward's parameters to name a program's inputs, and writes these names into guards.
torch 2.9 writes guards that it cannot run for inputs that come as `*inputs`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any


def with_parameters(forward: Callable[..., Any], names: Iterable[str]) -> None:
    """Give the method `forward(self, *inputs)` a signature of one parameter for each input.

    A name that is no Python name becomes `input_0`, `input_1`, by its position.
    """
    valid = (name if name.isidentifier() else f"input_{index}" for index, name in enumerate(names))
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *valid)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
