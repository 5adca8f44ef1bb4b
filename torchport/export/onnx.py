"""Converts a captured program to one checked `.onnx` file.

Its dimensions have the signature's names, and it contains no paths.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

from torchport.errors import ExportError
from torchport.export.program import check_dims, gist, is_dynamic
from torchport.export.recurrent import recurrent_layers_as_loops
from torchport.export.translations.rnn import rnn_translations
from torchport_runtime import Signature, TensorSpec

if TYPE_CHECKING:
    import onnx
    import onnx_ir
    from torch.export import ExportedProgram


def export_onnx(program: ExportedProgram, signature: Signature) -> tuple[bytes, dict[str, Any]]:
    """Convert a program to ONNX at the exporter's default opset.

    Returns the file's bytes, and facts for its record.

    Raises:
        ExportError: the exporter cannot take an operator, or onnx.checker refuses what it wrote.
    """
    proto = to_onnx(program, signature)
    _strip_paths(proto)
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as err:  # checker and shape inference each raise their own.
        raise ExportError(f"onnx.checker refuses the exported graph: {gist(err)}") from err
    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    facts = {"opset": opset, "ir_version": proto.ir_version, "nodes": len(proto.graph.node)}
    return proto.SerializeToString(deterministic=True), facts


def to_onnx(program: ExportedProgram, signature: Signature) -> onnx.ModelProto:
    """The ONNX graph with its dimensions named.

    Its nodes keep the stack traces that the program has.

    Raises:
        ExportError: the exporter cannot take an operator, or a dimension of an output came out fixed.
    """
    try:
        import onnx  # noqa: F401  (the exporter needs both and says so less clearly)
        import onnxscript  # noqa: F401
        import torch
    except ImportError as err:
        raise ExportError(f"ONNX export needs {err.name}: pip install 'torchport[train]'") from err
    try:
        with warnings.catch_warnings(), recurrent_layers_as_loops():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program,
                dynamo=True,
                custom_translation_table=rnn_translations(),
                input_names=list(signature.inputs),
                output_names=list(signature.outputs),
                external_data=False,
                verbose=False,
                optimize=False,
            )
            if exported is None:
                raise TypeError("torch.onnx.export gave no program")
            _forget_traced_sizes(exported.model, signature)
            exported.optimize()
        proto: onnx.ModelProto = exported.model_proto
    except Exception as err:  # The exporter's errors have a base class only inside torch.
        operator = re.search(r"aten[.:]+[\w.]+|prims[.:]+[\w.]+|torchvision[.:]+[\w.]+", str(err))
        what = f"the operator {operator.group()}" if operator else gist(err)
        raise ExportError(
            f"the ONNX exporter cannot take {what}: replace it by others, or leave onnxruntime out of "
            "the recipe's backends"
        ) from err
    _name_dims(proto, signature)
    return proto


def _forget_traced_sizes(model: onnx_ir.Model, signature: Signature) -> None:
    """Drop all noted shapes if one has a number for a named dimension.

    Only inputs are looked at, and then their dimensions are named. This happens before anything is
    optimized.

    The optimizer computes with the exporter's notes. With torch 2.14.1 and the length of a GRU's input
    noted as it was traced, it folded `arange(time) == 0` to a constant of that length. It infers anew
    what it needs. Symbolic notes are kept, because less can be inferred than they say.
    """
    import onnx_ir

    pairs = list(zip(model.graph.inputs, signature.inputs.values(), strict=True))
    if not any(
        is_dynamic(size, signature) and isinstance(noted, int)
        for value, spec in pairs
        for size, noted in zip(spec.shape, value.shape or (), strict=False)
    ):
        return
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    for graph in model.graph.subgraphs():
        for value in graph.inputs:
            value.shape = None
    for value, spec in pairs:
        value.shape = onnx_ir.Shape(spec.shape)


def _name_dims(proto: onnx.ModelProto, signature: Signature) -> None:
    """Give the graph's inputs and outputs the signature's named dimensions.

    The exporter's own notes on shapes are not kept: for a recurrent layer they give the traced size,
    though the graph takes any. Shape inference finds the real sizes, and verification checks them.
    """
    import onnx

    del proto.graph.value_info[:]
    for value, spec in zip(proto.graph.input, signature.inputs.values(), strict=True):
        _set_shape(value, spec)
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    for value, known, (name, spec) in zip(
        proto.graph.output, inferred.graph.output, signature.outputs.items(), strict=True
    ):
        sizes = known.type.tensor_type.shape.dim
        if known.type.tensor_type.HasField("shape"):
            found = [
                d.dim_value if d.HasField("dim_value") else s for d, s in zip(sizes, spec.shape, strict=False)
            ]
            check_dims("output", {name: found if len(sizes) == len(spec.shape) else list(sizes)}, signature)
        _set_shape(value, spec)


def _set_shape(value: onnx.ValueInfoProto, spec: TensorSpec) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for size in spec.shape:
        dim = shape.dim.add()
        if isinstance(size, str):
            dim.dim_param = size
        else:
            dim.dim_value = size


def _strip_paths(proto: onnx.ModelProto) -> None:
    """Remove stack traces, which contain the exporting machine's paths."""
    graphs = [proto.graph, *proto.functions]
    for graph in graphs:
        for node in graph.node:
            kept = [p for p in node.metadata_props if not p.key.endswith("stack_trace")]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)
            node.doc_string = ""
