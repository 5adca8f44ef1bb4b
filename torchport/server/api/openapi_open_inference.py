"""OpenAPI descriptions of the Open Inference Protocol's paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchport.server.open_inference.tensors import DATATYPES, MAX_DIMENSIONS, MAX_TENSORS

_ERRORS = {
    400: "The request cannot be read, or the model cannot take it",
    403: "The settings do not allow to load or unload models",
    404: "No such model, version or resource",
    405: "The resource does not take this method",
    413: "The body is larger than max_request_size",
    422: "The model's answer to this input is no number",
    500: "The model or a worker failed",
    503: "Overloaded or not ready: try again after Retry-After",
    504: "No answer within X-Request-Timeout-Ms",
}


def _object(properties: Mapping[str, Any], *optional: str) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": dict(properties)}


def _array(items: Mapping[str, Any], **bounds: Any) -> dict[str, Any]:
    return {"type": "array", "items": dict(items), **bounds}


_STRING = {"type": "string"}
_NAME = {"type": "string", "minLength": 1}
_BOOLEAN = {"type": "boolean"}
_ERROR = _object({"error": _STRING})
_PARAMETERS = {"type": "object", "nullable": True}

_METADATA = _object({"name": _STRING, "version": _STRING, "extensions": _array(_STRING)})
_TENSOR_METADATA = _object(
    {"name": _STRING, "datatype": _STRING, "shape": _array({"type": "integer", "minimum": -1})}
)
_MODEL = _object(
    {
        "name": _STRING,
        "versions": _array(_STRING),
        "platform": _STRING,
        "inputs": _array(_TENSOR_METADATA),
        "outputs": _array(_TENSOR_METADATA),
    }
)
_STATISTICS = _object({"model_stats": _array({"type": "object"})})
_INDEX = _array(_object({"name": _STRING, "version": _STRING, "state": _STRING, "reason": _STRING}))
_MODEL_READY = _object({"name": _STRING, "ready": _BOOLEAN})

_SIZE = {"type": "integer", "minimum": 1}
_DATA = {"type": "array", "items": {}, "nullable": True}
_INPUT = _object(
    {
        "name": _NAME,
        "shape": _array(_SIZE, maxItems=MAX_DIMENSIONS),
        "datatype": {"type": "string", "enum": [*DATATYPES]},
        "parameters": _PARAMETERS,
        "data": _DATA,
    },
    "parameters",
    "data",
)
_REQUEST = _object(
    {
        "id": {"type": "string", "nullable": True},
        "parameters": _PARAMETERS,
        "inputs": _array(_INPUT, minItems=1, maxItems=MAX_TENSORS),
        "outputs": {
            **_array(_object({"name": _NAME, "parameters": _PARAMETERS}, "parameters"), maxItems=MAX_TENSORS),
            "nullable": True,
        },
    },
    "id",
    "parameters",
    "outputs",
)
_OUTPUT = _object(
    {
        "name": _STRING,
        "shape": _array(_SIZE),
        "datatype": _STRING,
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}},
    },
    "parameters",
    "data",
)
_ANSWER = _object(
    {"model_name": _STRING, "model_version": _STRING, "id": _STRING, "outputs": _array(_OUTPUT)}, "id"
)


def _header(name: str, text: str) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 1, "maximum": 999999999}
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": text}


def _part(name: str, text: str) -> dict[str, Any]:
    # A path's part holds no slash.
    schema = {"type": "string", "pattern": "^[^/]+$"}
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": text}


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _operation(
    identifier: str,
    text: str,
    answers: Mapping[str, Mapping[str, Any]],
    parameters: list[dict[str, Any]],
    errors: tuple[int, ...],
) -> dict[str, Any]:
    responses: dict[str, Any] = {
        status: {"description": "Answer", "content": _json(schema)} for status, schema in answers.items()
    }
    for status in errors:
        responses[str(status)] = {"description": _ERRORS[status], "content": _json(_ERROR)}
    return {
        "operationId": identifier,
        "description": text,
        "parameters": parameters,
        "responses": responses,
    }


def _infer(suffix: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    operation = _operation(
        f"v2Infer{suffix}",
        "Tensors straight onto the model's graph; the request's parameter `graph` names another than `main`",
        {},
        [*parameters, _header("X-Request-Timeout-Ms", "Milliseconds within which the answer is wanted")],
        (400, 404, 405, 413, 422, 500, 503, 504),
    )
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    operation["responses"]["200"] = {
        "description": "The outputs; with binary_data their bytes come after the JSON, which is as long as "
        "the header Inference-Header-Content-Length says",
        "content": {**_json(_ANSWER), **binary},
    }
    operation["requestBody"] = {
        "required": True,
        "description": "Inputs. With the header Inference-Header-Content-Length, the JSON's length, bytes of "
        "tensors may come after it: as many as their parameters' binary_data_size say",
        "content": _json(_REQUEST),
    }
    return operation


def oip_paths() -> dict[str, Any]:
    """OpenAPI path items of the protocol, by path."""
    paths: dict[str, Any] = {
        "/v2": {"get": _operation("v2Server", "The server's name", {"200": _METADATA}, [], (405,))},
    }
    for word, identifier, answers in (
        ("live", "v2Live", ("200",)),
        ("ready", "v2Ready", ("200", "503")),
    ):
        schema = _object({word: _BOOLEAN})
        paths[f"/v2/health/{word}"] = {
            "get": _operation(
                identifier, f"Whether the server is {word}", dict.fromkeys(answers, schema), [], (405,)
            )
        }
    name = _part("model_name", "A model's name")
    number = _part("model_version", "A version of it")
    for path, parameters, suffix in (
        ("/v2/models/{model_name}", [name], ""),
        ("/v2/models/{model_name}/versions/{model_version}", [name, number], "Version"),
    ):
        paths[path] = {
            "get": _operation(
                f"v2Model{suffix}",
                "What a model takes and gives; -1 stands for a size that requests choose",
                {"200": _MODEL},
                parameters,
                (404, 405, 503),
            )
        }
        paths[f"{path}/ready"] = {
            "get": _operation(
                f"v2ModelReady{suffix}",
                "Whether a model can answer",
                {"200": _MODEL_READY, "503": _MODEL_READY},
                parameters,
                (404, 405),
            )
        }
        paths[f"{path}/infer"] = {"post": _infer(suffix, parameters)}
        paths[f"{path}/stats"] = {
            "get": _operation(
                f"v2Statistics{suffix}", "Counts and times", {"200": _STATISTICS}, parameters, (404, 405)
            )
        }
        paths[f"{path}/config"] = {
            "get": _operation(
                f"v2Config{suffix}",
                "A model's configuration, in Triton's words",
                {"200": {"type": "object"}},
                parameters,
                (404, 405, 503),
            )
        }
    return paths | _repository_paths(name)


def _repository_paths(name: dict[str, Any]) -> dict[str, Any]:
    """Path items of the model repository extension, and the statistics of all models."""
    index = _operation(
        "v2Index", "The models that are loaded or in the store", {"200": _INDEX}, [], (400, 405)
    )
    index["requestBody"] = {"content": _json({"type": "object", "properties": {"ready": _BOOLEAN}})}
    paths: dict[str, Any] = {
        "/v2/models/stats": {
            "get": _operation("v2AllStatistics", "Counts and times", {"200": _STATISTICS}, [], (405,))
        },
        "/v2/repository/index": {"post": index},
    }
    for action, text in (
        ("load", "Load a model's archives from the store, and wait until they are ready"),
        ("unload", "Remove every version of a model, once it has answered what waits"),
    ):
        operation = _operation(
            f"v2{action.title()}", text, {"200": {"type": "object"}}, [name], (400, 403, 404, 405, 500)
        )
        operation["requestBody"] = {
            "content": _json({"type": "object", "properties": {"parameters": _PARAMETERS}})
        }
        paths[f"/v2/repository/models/{{model_name}}/{action}"] = {"post": operation}
    return paths
