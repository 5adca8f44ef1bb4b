"""torch's table of ONNX functions, made once in a process.

`torch.onnx.export` makes it anew each time, from the sources of 500 functions: longer than all the rest of a
small model's export takes, and the suite exports hundreds.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any


def keep_table() -> None:
    """From now on every export gets a copy of the first one's table, if the exporter is imported by now.

    With a torch that has it elsewhere, exports stay as slow as they are.
    """
    module = sys.modules.get("torch.onnx._internal.exporter._registration")
    registry = getattr(module, "ONNXRegistry", None)
    make = getattr(registry, "from_torchlib", None)
    if registry is None or make is None or hasattr(make, "makes_anew"):
        return
    kept = cache(make)

    def copy_of_kept(*arguments: Any, **options: Any) -> Any:
        table, copy = kept(*arguments, **options), registry()
        vars(copy).update(vars(table))
        copy.functions = {operator: list(found) for operator, found in table.functions.items()}
        return copy

    copy_of_kept.makes_anew = make  # type: ignore[attr-defined]
    registry.from_torchlib = staticmethod(copy_of_kept)
