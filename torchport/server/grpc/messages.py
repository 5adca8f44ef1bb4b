"""The message classes of the gRPC services, made from tables at import.

    request = inference.PredictionsRequest(model_name="linear", input={"data": b"[4.0]"})
    inference.PredictionsRequest.FromString(request.SerializeToString())

Names and numbers are those of TorchServe 0.12, of the Open Inference Protocol and of gRPC's health checks.
No code is generated and nothing is added to protobuf's own pool: modules that protoc made from the same
files can be imported next to this one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = re.compile(
    r"((?P<label>repeated|optional) )?(map<string, (?P<value>\w+)>|(?P<type>\w+)) "
    r"(?P<name>\w+) = (?P<number>\d+)"
)
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name: getattr(_Field, f"TYPE_{name.upper()}")
    for name in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}

_pool = descriptor_pool.DescriptorPool()


def _messages(package: str, tables: Mapping[str, str]) -> SimpleNamespace:
    """Message classes, from fields as written in a `.proto` file."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"torchport/{package}.proto", package=package, syntax="proto3"
    )
    for name, fields in tables.items():
        message = file.message_type.add(name=name)
        for text in filter(None, (part.strip() for part in fields.split(";"))):
            _add_field(message, f".{package}", text)
    _pool.AddSerializedFile(file.SerializeToString())
    found = {name: _pool.FindMessageTypeByName(f"{package}.{name}") for name in tables}
    classes = {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}
    return SimpleNamespace(**classes)


def _add_field(message: Any, scope: str, text: str) -> None:
    match = _FIELD.fullmatch(text)
    if match is None:
        raise ValueError(f"{message.name}: {text!r} is no field")
    field = message.field.add(name=match["name"], number=int(match["number"]), label=_Field.LABEL_OPTIONAL)
    if match["value"]:
        # A map is a repeated message of keys and values.
        entry = message.nested_type.add(name=f"{match['name'].title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, scope, "string key = 1")
        _add_field(entry, scope, f"{match['value']} value = 2")
        field.type, field.label = _Field.TYPE_MESSAGE, _Field.LABEL_REPEATED
        field.type_name = f"{scope}.{message.name}.{entry.name}"
        return
    if match["type"] in _SCALARS:
        field.type = _SCALARS[match["type"]]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f"{scope}.{match['type']}"
    if match["label"] == "repeated":
        field.label = _Field.LABEL_REPEATED
    elif match["label"] == "optional":
        field.proto3_optional, field.oneof_index = True, len(message.oneof_decl)
        message.oneof_decl.add(name=f"_{field.name}")


INFERENCE = "org.pytorch.serve.grpc.inference"
MANAGEMENT = "org.pytorch.serve.grpc.management"
OPEN_INFERENCE = ("inference", "org.pytorch.serve.grpc.openinference")
"""Packages of the protocol's service: the protocol's own, and TorchServe's."""
HEALTH = "grpc.health.v1"

# `Empty` and `Status` are google.protobuf's and google.rpc's: a message's name is not sent.
inference = _messages(
    INFERENCE,
    {
        "Empty": "",
        "Status": "int32 code = 1; string message = 2",
        "PredictionsRequest": """
            string model_name = 1; string model_version = 2; map<string, bytes> input = 3;
            optional string sequence_id = 4
        """,
        "PredictionResponse": """
            bytes prediction = 1; optional string sequence_id = 2; optional Status status = 3
        """,
        "TorchServeHealthResponse": "string health = 1",
    },
)

_model = "string model_name = 1; string model_version = 2"
management = _messages(
    MANAGEMENT,
    {
        "ManagementResponse": "string msg = 1",
        "DescribeModelRequest": f"{_model}; bool customized = 3",
        "ListModelsRequest": "int32 limit = 1; int32 next_page_token = 2",
        "RegisterModelRequest": """
            int32 batch_size = 1; string handler = 2; int32 initial_workers = 3; int32 max_batch_delay = 4;
            string model_name = 5; int32 response_timeout = 6; string runtime = 7; bool synchronous = 8;
            string url = 9; bool s3_sse_kms = 10; int32 startup_timeout = 11
        """,
        "ScaleWorkerRequest": f"""
            {_model}; int32 max_worker = 3; int32 min_worker = 4; int32 number_gpu = 5; bool synchronous = 6;
            int32 timeout = 7
        """,
        "SetDefaultRequest": _model,
        "UnregisterModelRequest": _model,
    },
)

_asked = """
    string model_name = 1; string model_version = 2; string id = 3;
    map<string, InferParameter> parameters = 4; repeated InferInputTensor inputs = 5;
    repeated InferRequestedOutputTensor outputs = 6; repeated bytes raw_input_contents = 7
"""
# One of these is set; as a oneof it would be sent the same.
_parameter = """
    optional bool bool_param = 1; optional int64 int64_param = 2; optional string string_param = 3;
    optional double double_param = 4; optional uint64 uint64_param = 5
"""
_requested = "string name = 1; map<string, InferParameter> parameters = 2"
_tensor = """
    string name = 1; string datatype = 2; repeated int64 shape = 3;
    map<string, InferParameter> parameters = 4; InferTensorContents contents = 5
"""
_repository_model = """
    string repository_name = 1; string model_name = 2; map<string, ModelRepositoryParameter> parameters = 3
"""
open_inference = _messages(
    OPEN_INFERENCE[0],
    {
        "ServerLiveRequest": "",
        "ServerLiveResponse": "bool live = 1",
        "ServerReadyRequest": "",
        "ServerReadyResponse": "bool ready = 1",
        "ModelReadyRequest": "string name = 1; string version = 2",
        "ModelReadyResponse": "bool ready = 1",
        "ServerMetadataRequest": "",
        "ServerMetadataResponse": "string name = 1; string version = 2; repeated string extensions = 3",
        "ModelMetadataRequest": "string name = 1; string version = 2",
        "TensorMetadata": "string name = 1; string datatype = 2; repeated int64 shape = 3",
        "ModelMetadataResponse": """
            string name = 1; repeated string versions = 2; string platform = 3;
            repeated TensorMetadata inputs = 4; repeated TensorMetadata outputs = 5
        """,
        "InferParameter": _parameter,
        "InferTensorContents": """
            repeated bool bool_contents = 1; repeated int32 int_contents = 2;
            repeated int64 int64_contents = 3; repeated uint32 uint_contents = 4;
            repeated uint64 uint64_contents = 5; repeated float fp32_contents = 6;
            repeated double fp64_contents = 7; repeated bytes bytes_contents = 8
        """,
        "InferInputTensor": _tensor,
        "InferOutputTensor": _tensor,
        "InferRequestedOutputTensor": _requested,
        "ModelInferRequest": _asked,
        "ModelInferResponse": """
            string model_name = 1; string model_version = 2; string id = 3;
            map<string, InferParameter> parameters = 4; repeated InferOutputTensor outputs = 5;
            repeated bytes raw_output_contents = 6
        """,
        "RepositoryIndexRequest": "string repository_name = 1; bool ready = 2",
        "ModelIndex": "string name = 1; string version = 2; string state = 3; string reason = 4",
        "RepositoryIndexResponse": "repeated ModelIndex models = 1",
        "ModelRepositoryParameter": """
            optional bool bool_param = 1; optional int64 int64_param = 2; optional string string_param = 3;
            optional bytes bytes_param = 4
        """,
        "RepositoryModelLoadRequest": _repository_model,
        "RepositoryModelLoadResponse": "",
        "RepositoryModelUnloadRequest": _repository_model,
        "RepositoryModelUnloadResponse": "",
        "ModelStatisticsRequest": "string name = 1; string version = 2",
        "StatisticDuration": "uint64 count = 1; uint64 ns = 2",
        "InferStatistics": """
            StatisticDuration success = 1; StatisticDuration fail = 2; StatisticDuration queue = 3;
            StatisticDuration compute_input = 4; StatisticDuration compute_infer = 5;
            StatisticDuration compute_output = 6; StatisticDuration cache_hit = 7;
            StatisticDuration cache_miss = 8
        """,
        "InferBatchStatistics": """
            uint64 batch_size = 1; StatisticDuration compute_input = 2; StatisticDuration compute_infer = 3;
            StatisticDuration compute_output = 4
        """,
        "ModelStatistics": """
            string name = 1; string version = 2; uint64 last_inference = 3; uint64 inference_count = 4;
            uint64 execution_count = 5; InferStatistics inference_stats = 6;
            repeated InferBatchStatistics batch_stats = 7
        """,
        "ModelStatisticsResponse": "repeated ModelStatistics model_stats = 1",
        "ModelConfigRequest": "string name = 1; string version = 2",
        # Data types and kinds are enumerations there, which are sent as numbers.
        "ModelInput": "string name = 1; int32 data_type = 2; repeated int64 dims = 4",
        "ModelOutput": "string name = 1; int32 data_type = 2; repeated int64 dims = 3",
        "ModelInstanceGroup": "string name = 1; int32 count = 2; int32 kind = 4",
        "ModelConfig": """
            string name = 1; string platform = 2; int32 max_batch_size = 4; repeated ModelInput input = 5;
            repeated ModelOutput output = 6; repeated ModelInstanceGroup instance_group = 7;
            string backend = 17
        """,
        "ModelConfigResponse": "ModelConfig config = 1",
    },
)

_DATA_TYPES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64"),
)
MODEL_DATA_TYPES = {f"TYPE_{name}": number for number, name in enumerate(_DATA_TYPES, start=1)}
"""Numbers of the data types in a model's configuration."""

# The request as the server reads it: contents stay bytes, which are read a piece at a time.
open_inference_read = _messages(
    f"{OPEN_INFERENCE[0]}.read",
    {
        "InferParameter": _parameter,
        "InferInputTensor": _tensor.replace("InferTensorContents contents", "optional bytes contents"),
        "InferRequestedOutputTensor": _requested,
        "ModelInferRequest": _asked,
    },
)

health = _messages(
    HEALTH,
    # The status is an enumeration there, which is sent as a number.
    {"HealthCheckRequest": "string service = 1", "HealthCheckResponse": "int32 status = 1"},
)
