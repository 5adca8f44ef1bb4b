"""TorchScript: traces or scripts a model, and freezes it into the bytes of `main.pt`."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from torchport.errors import ExportError
from torchport.export.program import gist, positional
from torchport.model.half_precision import default_dtype, half_dtype, in_half
from torchport.recipe.contract import Recipe
from torchport.recipe.user_code import is_model_code, where_in_user_code
from torchport_runtime import Signature

if TYPE_CHECKING:
    from torch import nn

_BRANCH = re.compile(r"Converting a tensor to a Python (boolean|integer|float|number)")
_MANGLED = re.compile(rb"___torch_mangle_(\d+)")


def export_torchscript(
    recipe: Recipe,
    module: nn.Module,
    signature: Signature,
    inputs: Mapping[str, np.ndarray],
    precision: str = "float32",
) -> bytes:
    """Trace or script a model, as the recipe says, and freeze it.

    Raises:
        ExportError: TorchScript cannot take the model, or a trace would freeze a branch.
    """
    import torch

    arguments = positional(inputs)
    is_half, script = precision != "float32", recipe.torchscript == "script"
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            torch.no_grad(),
            default_dtype(half_dtype(precision) if is_half else None),
        ):
            warnings.simplefilter("always")
            if is_half:
                # What is scripted has its branches still where the casts around it are traced.
                module = in_half(module, signature, precision, script=script)
            if script and not is_half:
                program = torch.jit.script(module)
            else:
                program = torch.jit.trace(module, arguments, strict=False)  # type: ignore[no-untyped-call]
            program = torch.jit.freeze(program.eval())
            buffer = io.BytesIO()
            torch.jit.save(program, buffer)
    except Exception as err:  # TorchScript's compiler raises RuntimeError, NotSupportedError and more.
        hint = (
            "write it in TorchScript's subset of Python, or trace it (torchscript = 'trace')"
            if script
            else "script it (torchscript = 'script'), or rewrite that line without Python values"
        )
        raise ExportError(f"{where_in_user_code(err, recipe)}: {gist(err)}: {hint}") from err
    if recipe.torchscript == "trace":
        _refuse_branches(caught, recipe)
    return _normalised(buffer.getvalue())


def _refuse_branches(caught: list[warnings.WarningMessage], recipe: Recipe) -> None:
    """Refuse a traced model that takes a Python value from a tensor.

    It would always take the traced branch.
    """
    from torch.jit._trace import TracerWarning

    for warning in caught:
        if issubclass(warning.category, TracerWarning) and _BRANCH.search(str(warning.message)):
            file = Path(warning.filename)
            if file.parent == recipe.path.parent or is_model_code(str(file)):
                raise ExportError(
                    f"{file.name}:{warning.lineno}: a Python value is taken from a tensor here, which a "
                    "trace would freeze into the model: script it (torchscript = 'script'), or rewrite "
                    "the line with torch operations such as torch.where"
                )


def _normalised(content: bytes) -> bytes:
    """A TorchScript file's bytes, independent of when and where it was made.

    Source ranges, which contain this machine's paths, are left out. TorchScript numbers classes one
    after another in a process; here the numbers start at 0. Tensors keep the 64-byte alignment that
    torch writes them with.
    """
    source = zipfile.ZipFile(io.BytesIO(content))
    kept = [i for i in source.infolist() if not i.filename.endswith((".debug_pkl", "serialization_id"))]
    numbers = sorted({int(n) for i in kept for n in _MANGLED.findall(i.filename.encode())})
    renamed = {b"%d" % number: b"%d" % index for index, number in enumerate(numbers)}

    def rename(text: bytes) -> bytes:
        return _MANGLED.sub(lambda m: b"___torch_mangle_" + renamed.get(m[1], m[1]), text)

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as target:
        for info in kept:
            entry = zipfile.ZipInfo(rename(info.filename.encode()).decode(), date_time=(1980, 1, 1, 0, 0, 0))
            header = buffer.tell() + 30 + len(entry.filename.encode()) + 4
            padding = -header % 64
            entry.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            body = source.read(info)
            # A class's name stands in a pickle as a line of its own, so its length may change.
            target.writestr(entry, rename(body) if info.filename.endswith((".py", ".pkl")) else body)
    return buffer.getvalue()
