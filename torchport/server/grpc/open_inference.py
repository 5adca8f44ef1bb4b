"""The Open Inference Protocol over gRPC: tensors for a model's graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torchport.server.dispatch.job import Kind
from torchport.server.errors import InvalidRequest
from torchport.server.grpc.calls import Call, Calls, Method
from torchport.server.grpc.messages import OPEN_INFERENCE, open_inference, open_inference_read
from torchport.server.grpc.predictions import PendingCall
from torchport.server.grpc.reading import field_of_bytes, pieces_of_contents
from torchport.server.http.parsing import INLINE_BYTES, in_parsing_thread, let_others_run
from torchport.server.models.registry import Registry
from torchport.server.open_inference.metadata import MAIN_GRAPH, model_metadata, server_metadata
from torchport.server.open_inference.tensors import (
    MAX_DIMENSIONS,
    MAX_TENSORS,
    datatype_of,
    require_distinct,
    require_size,
    tensor_of_bytes,
    tensor_of_values,
    values_of,
)
from torchport.server.wire import InferRow, Tensor

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Message field of each datatype's values. FP16 has no field: it is sent as bytes."""


class OpenInferenceService:
    """The service `GRPCInferenceService`, in the protocol's package and in TorchServe's."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def methods(self, calls: Calls) -> list[Method]:
        """The methods for a gRPC server, by both names of the service."""
        messages = open_inference
        methods = {
            "ServerLive": (messages.ServerLiveRequest, self._live),
            "ServerReady": (messages.ServerReadyRequest, self._ready),
            "ServerMetadata": (messages.ServerMetadataRequest, self._server),
            "ModelReady": (messages.ModelReadyRequest, self._model_ready),
            "ModelMetadata": (messages.ModelMetadataRequest, self._model),
            "ModelInfer": (open_inference_read.ModelInferRequest, self._infer),
        }
        services = (
            calls.service(f"{package}.GRPCInferenceService", unary=methods) for package in OPEN_INFERENCE
        )
        return [method for service in services for method in service]

    async def _live(self, request: Any, call: Call) -> Any:
        return open_inference.ServerLiveResponse(live=True)

    async def _ready(self, request: Any, call: Call) -> Any:
        return open_inference.ServerReadyResponse(ready=self._registry.is_ready)

    async def _server(self, request: Any, call: Call) -> Any:
        return open_inference.ServerMetadataResponse(**server_metadata(self._registry.settings))

    async def _model_ready(self, request: Any, call: Call) -> Any:
        ready = self._registry.is_model_ready(_named(request.name), request.version or None)
        return open_inference.ModelReadyResponse(ready=ready)

    async def _model(self, request: Any, call: Call) -> Any:
        metadata = model_metadata(self._registry, _named(request.name), request.version or None)
        return open_inference.ModelMetadataResponse(**metadata)

    async def _infer(self, request: Any, call: Call) -> Any:
        name, number = _named(request.model_name), request.model_version
        is_large = request.ByteSize() > INLINE_BYTES
        raw = request.raw_input_contents if call.large is None else call.large
        # Truths are looked at one by one.
        is_large |= bool(call.large) and any(
            given.datatype == "BOOL" for given in request.inputs[:MAX_TENSORS]
        )
        row = await in_parsing_thread(_row, request, raw) if is_large else _row(request, raw)
        require_size(row.inputs, self._registry.settings.max_request_size)
        asked = PendingCall(self._registry, call, Kind.TENSORS, name, number, row)
        answer = await asked.answer()
        response = open_inference.ModelInferResponse(
            model_name=name, model_version=asked.version.model.version, id=request.id
        )
        # A client that sends bytes gets bytes; so does one that asks about what has no field.
        datatypes = [datatype_of(tensor.dtype) for tensor in answer.tensors]
        if raw or not set(datatypes) <= set(_CONTENTS):
            return _in_bytes(response, answer.tensors, datatypes)
        if sum(len(tensor.data) for tensor in answer.tensors) > INLINE_BYTES:
            await in_parsing_thread(_write, response, answer.tensors, datatypes)
        else:
            _write(response, answer.tensors, datatypes)
        return response


def _named(name: str) -> str:
    if not name:
        raise InvalidRequest("a model's name is required")
    return name


def _graph(request: Any) -> str:
    if "graph" not in request.parameters:
        return MAIN_GRAPH
    parameter = request.parameters["graph"]
    if not parameter.HasField("string_param"):
        raise InvalidRequest("parameters.graph: a graph's name is expected, in string_param")
    return str(parameter.string_param)


def _row(request: Any, raw: Sequence[bytes | memoryview]) -> InferRow:
    """The tensors that a request asks about."""
    outputs = request.outputs
    if len(outputs) > MAX_TENSORS:
        raise InvalidRequest(f"{len(outputs)} outputs: at most {MAX_TENSORS} are expected")
    row = InferRow(_graph(request), _tensors(request, raw), [wanted.name for wanted in outputs])
    require_distinct("output", row.outputs)
    return row


def _tensors(request: Any, raw: Sequence[bytes | memoryview]) -> list[Tensor]:
    inputs = request.inputs
    if not inputs:
        raise InvalidRequest("the request has no inputs")
    if len(inputs) > MAX_TENSORS:
        raise InvalidRequest(f"{len(inputs)} inputs: at most {MAX_TENSORS} are expected")
    require_distinct("input", [given.name for given in inputs])
    if raw and len(raw) != len(inputs):
        raise InvalidRequest(f"raw_input_contents has {len(raw)} entries for {len(inputs)} inputs")
    tensors = []
    for index, given in enumerate(inputs):
        if len(given.shape) > MAX_DIMENSIONS:
            raise InvalidRequest(f"input {given.name[:40]!r}: a shape of {len(given.shape)} dimensions")
        shape = list(given.shape)
        if raw:
            if given.contents:
                raise InvalidRequest(f"input {given.name[:40]!r} has contents beside raw_input_contents")
            data = bytes(raw[index]) if given.datatype == "BOOL" else cast(bytes, raw[index])
            tensors.append(tensor_of_bytes(given.name, given.datatype, shape, data))
            continue
        field = _CONTENTS.get(given.datatype)
        if field is None and given.datatype == "FP16":
            raise InvalidRequest(f"input {given.name[:40]!r}: FP16 is expected in raw_input_contents")
        pieces = pieces_of_contents(given.contents, field) if field else ()
        tensors.append(tensor_of_values(given.name, given.datatype, shape, pieces))
    return tensors


def _in_bytes(response: Any, tensors: Sequence[Tensor], datatypes: Sequence[str]) -> Any:
    """The response with the tensors as bytes; in pieces if they are large, which are not copied."""
    for tensor, datatype in zip(tensors, datatypes, strict=True):
        response.outputs.add(name=tensor.name, datatype=datatype, shape=tensor.shape)
    if sum(len(tensor.data) for tensor in tensors) <= INLINE_BYTES:
        response.raw_output_contents.extend(tensor.data for tensor in tensors)
        return response
    number = type(response).DESCRIPTOR.fields_by_name["raw_output_contents"].number
    return [
        response.SerializeToString(),
        *(piece for tensor in tensors for piece in field_of_bytes(number, tensor.data)),
    ]


def _write(response: Any, tensors: Sequence[Tensor], datatypes: Sequence[str]) -> None:
    """Add the tensors to a response, in the fields for their datatypes."""
    for tensor, datatype in zip(tensors, datatypes, strict=True):
        output = response.outputs.add(name=tensor.name, datatype=datatype, shape=tensor.shape)
        contents = getattr(output.contents, _CONTENTS[datatype])
        for values in values_of(tensor):
            contents.extend(values)
            let_others_run()
