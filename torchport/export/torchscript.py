"""TorchScript: traces or scripts a model, and freezes it into the bytes of `main.pt`."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from pathlib import Path

from torchport.errors import ExportError
from torchport.export.program import gist, positional
from torchport.export.traced_graph import TracedGraph
from torchport.model.half_precision import default_dtype, half_dtype, in_half
from torchport.recipe.contract import Recipe
from torchport.recipe.user_code import is_model_code, where_in_user_code
from torchport.store.zips import reproducible_zip

_BRANCH = re.compile(r"Converting a tensor to a Python (boolean|integer|float|number)")
_MANGLED = re.compile(rb"___torch_mangle_(\d+)")


def export_torchscript(graph: TracedGraph, precision: str = "float32") -> bytes:
    """Trace or script, as the recipe says, and freeze."""
    import torch

    recipe, module = graph.recipe, graph.module
    arguments = positional(graph.inputs)
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
                module = in_half(module, graph.signature, precision, script=script)
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

    def renamed_body(info: zipfile.ZipInfo) -> bytes:
        body = source.read(info)
        # A class's name stands in a pickle as a line of its own, so its length may change.
        return rename(body) if info.filename.endswith((".py", ".pkl")) else body

    return reproducible_zip(
        ((rename(info.filename.encode()).decode(), renamed_body(info)) for info in kept), alignment=64
    )
