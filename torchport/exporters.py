"""One function per artifact format. Each returns bytes, or raises `ExportError` naming the operator
or the line of the user's model, and what to try.
"""

from __future__ import annotations

import importlib.util
import inspect
import io
import logging
import re
import traceback
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport.errors import ExportError
from torchport.half_precision import default_dtype, half_dtype, in_half
from torchport.recipe import Recipe
from torchport.recurrent import recurrent_layers_as_loops
from torchport_runtime import Signature
from torchport_runtime.backends import named_outputs

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

_LIBRARIES = ("torch", "torchport", "torchport_runtime", "onnxscript", "onnx", "importlib")
_BRANCH = re.compile(r"Converting a tensor to a Python (boolean|integer|float|number)")
_MANGLED = re.compile(rb"___torch_mangle_(\d+)")
_STACK_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in')


def in_order(module: nn.Module, signature: Signature, inputs: Mapping[str, np.ndarray]) -> nn.Module:
    """The module; where it returns a dict or a named tuple, with a tuple in the signature's order."""
    import torch
    from torch import nn

    with torch.no_grad():
        returned = module(*_arguments(inputs))
    if torch.is_tensor(returned) or type(returned) in (tuple, list):
        return module

    class Ordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *inputs: Any) -> tuple[Any, ...]:
            return tuple(named_outputs(self.model(*inputs), names).values())

    names = list(signature.outputs)
    return Ordered().eval()


def export_torchscript(
    recipe: Recipe,
    module: nn.Module,
    signature: Signature,
    inputs: Mapping[str, np.ndarray],
    precision: str = "float32",
) -> bytes:
    """Trace or script, as the recipe says, and freeze."""
    import torch

    arguments = _arguments(inputs)
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


def export_program(
    recipe: Recipe,
    module: nn.Module,
    signature: Signature,
    inputs: Mapping[str, np.ndarray],
    precision: str = "float32",
) -> ExportedProgram:
    """torch.export with every symbolic dimension dynamic, its dimensions held against the signature."""
    import torch
    from torch.export import Dim

    dynamic: tuple[Any, ...] = tuple(
        {axis: Dim.AUTO for axis, size in enumerate(spec.shape) if _is_dynamic(size, signature)}
        for spec in signature.inputs.values()
    )
    is_half = precision != "float32"
    if is_half:
        module = in_half(module, signature, precision)
    first = next(iter(inspect.signature(module.forward).parameters.values()), None)
    if first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL:
        dynamic = (dynamic,)  # It takes *inputs, which count as one argument.
    own_dtype = default_dtype(half_dtype(precision) if is_half else None)
    try:
        with quiet(), recurrent_layers_as_loops(), own_dtype:
            program = torch.export.export(module, _arguments(inputs), dynamic_shapes=dynamic)
    except Exception as err:  # torch.export raises UserError, TorchRuntimeError, guards' and ops' own.
        raise ExportError(
            f"{where_in_user_code(err, recipe)}: torch.export cannot take it: {gist(err)}: rewrite "
            "that line with torch operations (torch.where, torch.cond), or leave pt2 and onnxruntime "
            "out of the recipe's backends"
        ) from err
    for part in program.graph_module.modules():
        for node in getattr(getattr(part, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    values = [placeholders[name].meta["val"] for name in program.graph_signature.user_inputs]
    check_dims("input", {n: list(v.shape) for n, v in zip(signature.inputs, values, strict=True)}, signature)
    returned = next(n for n in program.graph.nodes if n.op == "output").args[0]
    outputs = list(returned)[-len(signature.outputs) :]
    check_dims(
        "output",
        {n: list(v.meta["val"].shape) for n, v in zip(signature.outputs, outputs, strict=True)},
        signature,
    )
    return program


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's own notes on a failed capture, pages of it, off the terminal: the error has the line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def save_program(program: ExportedProgram) -> bytes:
    """A `.pt2` file's bytes; its name is not among them, as it would be if it were saved to a path."""
    import torch

    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(program, buffer)
    except Exception as err:  # The serialiser raises NotImplementedError, AssertionError and its own.
        raise ExportError(f"torch.export cannot write it down: {gist(err)}") from err
    return buffer.getvalue()


def where_in_user_code(err: BaseException, recipe: Recipe) -> str:
    """The user's line that an error came through: the recipe's own where there is one."""
    frames: list[tuple[str, int]] = []
    for link in _chain(err):
        frames += [(f.filename, f.lineno or 0) for f in traceback.extract_tb(link.__traceback__)]
        frames += [(m["file"], int(m["line"])) for m in _STACK_LINE.finditer(str(link))]
    beside = [f for f in frames if Path(f[0]).parent == recipe.path.parent]
    other = [f for f in frames if _is_model_code(f[0])]
    for found in (beside, other):
        if found:
            return f"{Path(found[-1][0]).name}:{found[-1][1]}"
    return recipe.path.name


def _arguments(inputs: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
    import torch

    return tuple(torch.from_numpy(array.copy()) for array in inputs.values())


def _is_dynamic(size: int | str, signature: Signature) -> bool:
    return isinstance(size, str) and signature.dims[size][0] != signature.dims[size][1]


def check_dims(role: str, shapes: Mapping[str, list[Any]], signature: Signature) -> None:
    """Every symbolic dimension must have stayed symbolic, and two names must not have become one."""
    specs = signature.inputs if role == "input" else signature.outputs
    names: dict[str, str] = {}
    for tensor, shape in shapes.items():
        want = specs[tensor].shape
        if len(shape) != len(want):
            raise ExportError(f"{role} {tensor!r} has shape {shape}, the signature says {list(want)}")
        for axis, (size, expected) in enumerate(zip(shape, want, strict=True)):
            fixed = isinstance(size, int) or str(size).isdigit()
            if _is_dynamic(expected, signature):
                if fixed:
                    raise ExportError(
                        f"{role} {tensor!r}, axis {axis}: {expected!r} came out fixed at {size}: "
                        "something in forward fixes this size (a number taken from it, or a layer that the "
                        "exporter unrolls); use x.shape[...] where it is needed, put the number into the "
                        "signature, or leave this format out of the recipe's backends"
                    )
                if str(size).isidentifier() and names.setdefault(str(size), str(expected)) != expected:
                    raise ExportError(
                        f"{role} {tensor!r}: {expected!r} must equal {names[str(size)]!r}, says the "
                        "exporter: give both one name"
                    )
            elif fixed and isinstance(expected, int) and int(size) != expected:
                raise ExportError(f"{role} {tensor!r} has shape {shape}, the signature says {list(want)}")


def _refuse_branches(caught: list[warnings.WarningMessage], recipe: Recipe) -> None:
    """A traced model that asked a tensor for a Python value would take one branch for ever."""
    from torch.jit._trace import TracerWarning

    for warning in caught:
        if issubclass(warning.category, TracerWarning) and _BRANCH.search(str(warning.message)):
            file = Path(warning.filename)
            if file.parent == recipe.path.parent or _is_model_code(str(file)):
                raise ExportError(
                    f"{file.name}:{warning.lineno}: a Python value is taken from a tensor here, which a "
                    "trace would freeze into the model: script it (torchscript = 'script'), or rewrite "
                    "the line with torch operations such as torch.where"
                )


def _normalised(content: bytes) -> bytes:
    """A TorchScript file's bytes with nothing in them of where and when they were made.

    Source ranges, which hold this machine's paths, are left out, and the numbers that TorchScript gives to
    classes, one after another for as long as a process lives, start at 0. Tensors keep the 64-byte
    alignment that torch writes them with.
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


def _is_model_code(file: str) -> bool:
    """Whether a file can be where a user's model is written: not torch's, ours, or Python's own."""
    path = Path(file)
    return (
        file.endswith(".py")
        and path.parent != Path(traceback.__file__).parent
        and not any(path.is_relative_to(folder) for folder in _libraries())
    )


@cache
def _libraries() -> tuple[Path, ...]:
    """Where packages lie, and parts of Python, through which an error in a user's model comes. By their
    place: a user's folder may have any name."""
    found = (importlib.util.find_spec(name) for name in _LIBRARIES)
    return tuple(Path(spec.origin).parent for spec in found if spec is not None and spec.origin)


def _chain(err: BaseException | None) -> Iterator[BaseException]:
    while err is not None:
        yield err
        err = err.__cause__ or err.__context__


def gist(err: BaseException) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return f"{type(err).__name__}: {(lines[0] if lines else '')[:300]}"
