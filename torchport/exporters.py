"""One function per artifact format. Each returns bytes, or raises `ExportError` naming the operator
or the line of the user's model, and what to try.
"""

from __future__ import annotations

import io
import re
import traceback
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport.errors import ExportError
from torchport.recipe import Recipe
from torchport_runtime import Signature

if TYPE_CHECKING:
    import onnx
    from torch import nn
    from torch.export import ExportedProgram

_BRANCH = re.compile(r"Converting a tensor to a Python (boolean|integer|float|number)")
_STACK_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in')


def export_torchscript(
    recipe: Recipe, module: nn.Module, signature: Signature, inputs: Mapping[str, np.ndarray]
) -> bytes:
    """Trace or script, as the recipe says, and freeze."""
    import torch

    arguments = _arguments(inputs)
    _forget_torchscript_classes()
    try:
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            if recipe.torchscript == "script":
                program = torch.jit.script(module)
            else:
                program = torch.jit.trace(module, arguments, strict=False)  # type: ignore[no-untyped-call]
            program = torch.jit.freeze(program.eval())
            buffer = io.BytesIO()
            torch.jit.save(program, buffer)
    except Exception as err:  # TorchScript's compiler raises RuntimeError, NotSupportedError and more.
        hint = (
            "write it in TorchScript's subset of Python, or trace it (torchscript = 'trace')"
            if recipe.torchscript == "script"
            else "script it (torchscript = 'script'), or rewrite that line without Python values"
        )
        raise ExportError(f"{where_in_user_code(err, recipe)}: {_gist(err)}: {hint}") from err
    if recipe.torchscript == "trace":
        _refuse_branches(caught, recipe)
    return _without_debug_info(buffer.getvalue())


def export_program(
    recipe: Recipe, module: nn.Module, signature: Signature, inputs: Mapping[str, np.ndarray]
) -> ExportedProgram:
    """torch.export with every symbolic dimension dynamic, its dimensions held against the signature."""
    import torch
    from torch.export import Dim

    dynamic = tuple(
        {axis: Dim.AUTO for axis, size in enumerate(spec.shape) if _is_dynamic(size, signature)}
        for spec in signature.inputs.values()
    )
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, _arguments(inputs), dynamic_shapes=dynamic)
    except Exception as err:  # torch.export raises UserError, TorchRuntimeError, guards' and ops' own.
        raise ExportError(
            f"{where_in_user_code(err, recipe)}: torch.export cannot take it: {_gist(err)}: rewrite "
            "that line with torch operations (torch.where, torch.cond), or leave pt2 and onnxruntime "
            "out of the recipe's backends"
        ) from err
    for part in program.graph_module.modules():
        for node in getattr(getattr(part, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    values = [placeholders[name].meta["val"] for name in program.graph_signature.user_inputs]
    _check_dims("input", {n: list(v.shape) for n, v in zip(signature.inputs, values, strict=True)}, signature)
    returned = next(n for n in program.graph.nodes if n.op == "output").args[0]
    outputs = list(returned)[-len(signature.outputs) :]
    _check_dims(
        "output",
        {n: list(v.meta["val"].shape) for n, v in zip(signature.outputs, outputs, strict=True)},
        signature,
    )
    return program


def save_program(program: ExportedProgram) -> bytes:
    """A `.pt2` file's bytes; its name is not among them, as it would be if it were saved to a path."""
    import torch

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer)
    return buffer.getvalue()


def export_onnx(program: ExportedProgram, signature: Signature) -> tuple[bytes, dict[str, Any]]:
    """One `.onnx` file at the exporter's default opset, and what is to be recorded about it."""
    try:
        import onnx
        import onnxscript  # noqa: F401  (the exporter needs it and says so less clearly)
        import torch
    except ImportError as err:
        raise ExportError(f"ONNX export needs {err.name}: pip install 'torchport[train]'") from err
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=list(signature.inputs),
                output_names=list(signature.outputs),
                external_data=False,
                verbose=False,
            )
        assert exported is not None
        proto: onnx.ModelProto = exported.model_proto
    except Exception as err:  # The exporter's errors have a base class only inside torch.
        operator = re.search(r"aten[.:]+[\w.]+|prims[.:]+[\w.]+|torchvision[.:]+[\w.]+", str(err))
        what = f"the operator {operator.group()}" if operator else _gist(err)
        raise ExportError(
            f"the ONNX exporter cannot take {what}: replace it by others, or leave onnxruntime out of "
            "the recipe's backends"
        ) from err
    _name_dims(proto, signature)
    _strip_paths(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as err:  # checker and shape inference each raise their own.
        raise ExportError(f"onnx.checker refuses the exported graph: {_gist(err)}") from err
    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    facts = {"opset": opset, "ir_version": proto.ir_version, "nodes": len(proto.graph.node)}
    return proto.SerializeToString(deterministic=True), facts


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


def _check_dims(role: str, shapes: Mapping[str, list[Any]], signature: Signature) -> None:
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
                        "forward uses this size as a number; use x.shape[...] where it is needed, or "
                        "put the number into the signature"
                    )
                if str(size).isidentifier() and names.setdefault(str(size), str(expected)) != expected:
                    raise ExportError(
                        f"{role} {tensor!r}: {expected!r} must equal {names[str(size)]!r}, says the "
                        "exporter: give both one name"
                    )
            elif fixed and isinstance(expected, int) and int(size) != expected:
                raise ExportError(f"{role} {tensor!r} has shape {shape}, the signature says {list(want)}")


def _name_dims(proto: onnx.ModelProto, signature: Signature) -> None:
    """Give the exporter's symbols (s77) the signature's names, and hold them against it."""
    rename: dict[str, str] = {}
    for role, specs, values in (
        ("input", signature.inputs, proto.graph.input),
        ("output", signature.outputs, proto.graph.output),
    ):
        shapes = {}
        for value, (name, spec) in zip(values, specs.items(), strict=True):
            dims = value.type.tensor_type.shape.dim
            shapes[name] = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in dims]
            for dim, expected in zip(dims, spec.shape, strict=False):
                if dim.HasField("dim_param") and isinstance(expected, str):
                    if role == "input":
                        rename[dim.dim_param] = expected
                    dim.dim_param = expected
        _check_dims(role, shapes, signature)
    for value in proto.graph.value_info:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param") and dim.dim_param in rename:
                dim.dim_param = rename[dim.dim_param]


def _strip_paths(proto: onnx.ModelProto) -> None:
    """Take out stack traces, which hold the paths of the machine that exported."""
    graphs = [proto.graph, *proto.functions]
    for graph in graphs:
        for node in graph.node:
            kept = [p for p in node.metadata_props if not p.key.endswith("stack_trace")]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)
            node.doc_string = ""


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


def _forget_torchscript_classes() -> None:
    """Start TorchScript's class names afresh: their counter would otherwise go into the file's bytes."""
    import torch

    torch._C._jit_clear_class_registry()
    torch.jit._state._clear_class_state()
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()


def _without_debug_info(content: bytes) -> bytes:
    """A TorchScript file without its source ranges, which hold this machine's paths.

    Tensors keep the 64-byte alignment that torch writes them with.
    """
    source = zipfile.ZipFile(io.BytesIO(content))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as target:
        for info in source.infolist():
            if info.filename.endswith(".debug_pkl"):
                continue
            entry = zipfile.ZipInfo(info.filename, date_time=(1980, 1, 1, 0, 0, 0))
            header = buffer.tell() + 30 + len(entry.filename.encode()) + 4
            padding = -header % 64
            entry.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            target.writestr(entry, source.read(info))
    return buffer.getvalue()


def _is_model_code(file: str) -> bool:
    """Whether a file can be where a user's model is written: not torch's, ours, or Python's own."""
    parts = Path(file).parts
    return (
        file.endswith(".py")
        and not {"torch", "torchport", "torchport_runtime", "onnxscript", "onnx"} & set(parts)
        and Path(traceback.__file__).parent not in Path(file).parents[:1]
        and "importlib" not in parts
    )


def _chain(err: BaseException | None) -> Iterator[BaseException]:
    while err is not None:
        yield err
        err = err.__cause__ or err.__context__


def _gist(err: BaseException) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return f"{type(err).__name__}: {(lines[0] if lines else '')[:300]}"
