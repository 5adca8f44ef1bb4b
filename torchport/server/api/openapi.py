"""Descriptions of the APIs in OpenAPI 3.0, for `/api-description` and `OPTIONS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchport.server.api.openapi_open_inference import oip_paths
from torchport.server.models.version import ModelVersion
from torchport.server.settings.checks import MAX_WORKERS
from torchport.version import __version__

_ERROR = {
    "type": "object",
    "required": ["code", "type", "message"],
    "properties": {
        "code": {"type": "integer"},
        "type": {"type": "string"},
        "message": {"type": "string"},
    },
}
_STATUS = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}
_READY = {
    "type": "object",
    "required": ["name", "ready"],
    "properties": {"name": {"type": "string"}, "ready": {"type": "boolean"}},
}
_NAMES = {"type": "array", "items": {"type": "string"}}
_RELOADED = {
    "type": "object",
    "required": ["status", "loaded", "replaced", "default", "retired", "failed"],
    "properties": {
        "status": {"type": "string"},
        **dict.fromkeys(("loaded", "replaced", "default", "retired"), _NAMES),
        "failed": {"type": "object"},
    },
}
_MODELS = {
    "type": "object",
    "required": ["models"],
    "properties": {
        "nextPageToken": {"type": "string"},
        "models": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["modelName", "modelUrl"],
                "properties": {"modelName": {"type": "string"}, "modelUrl": {"type": "string"}},
            },
        },
    },
}
_DESCRIPTIONS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["modelName", "modelVersion", "minWorkers", "maxWorkers", "batchSize", "workers"],
        "properties": {
            "modelName": {"type": "string"},
            "modelVersion": {"type": "string"},
            "modelUrl": {"type": "string"},
            "minWorkers": {"type": "integer"},
            "maxWorkers": {"type": "integer"},
            "batchSize": {"type": "integer"},
            "workers": {"type": "array", "items": {"type": "object"}},
        },
    },
}
_ANYTHING: dict[str, Any] = {}
_TIMEOUT = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "required": False,
    "schema": {"type": "integer", "minimum": 1, "maximum": 999999999},
    "description": "Milliseconds within which the answer is wanted",
}


def _path(name: str, text: str) -> dict[str, Any]:
    # A path's part holds no slash.
    schema = {"type": "string", "pattern": "^[^/]+$"}
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": text}


def _query(name: str, kind: str, text: str, **bounds: Any) -> dict[str, Any]:
    schema = {"type": kind, **bounds}
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": text}


def _content(schema: Mapping[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {kind: {"schema": schema}}


def _operation(
    identifier: str,
    text: str,
    answers: Mapping[str, Mapping[str, Any]],
    *,
    parameters: list[dict[str, Any]] | None = None,
    body: bool = False,
    errors: tuple[int, ...] = (),
) -> dict[str, Any]:
    responses: dict[str, Any] = {
        status: {"description": "Answer", "content": _content(schema)} for status, schema in answers.items()
    }
    for status in errors:
        responses[str(status)] = {"description": _ERRORS[status], "content": _content(_ERROR)}
    operation: dict[str, Any] = {"operationId": identifier, "description": text, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body:
        any_type = {"type": "string", "format": "binary"}
        operation["requestBody"] = {
            "content": {"*/*": {"schema": any_type}, "application/json": {"schema": _ANYTHING}}
        }
    return operation


_ERRORS = {
    400: "The request cannot be read, or the model cannot take it",
    403: "A URL outside of what models may be loaded from",
    404: "No such model, version or resource",
    405: "The resource does not take this method",
    408: "The request did not arrive in time",
    409: "The version is registered already",
    413: "The body is larger than max_request_size",
    422: "The model's answer to this input is no number",
    500: "The model or a worker failed",
    501: "Not supported",
    503: "Overloaded or not ready: try again after Retry-After",
    504: "No answer within X-Request-Timeout-Ms",
    507: "Out of memory",
}
_PREDICTION_ERRORS = (400, 404, 405, 413, 422, 500, 503, 504, 507)


def _prediction(identifier: str, text: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    operation = _operation(
        identifier, text, {}, parameters=[*parameters, _TIMEOUT], body=True, errors=_PREDICTION_ERRORS
    )
    operation["responses"]["200"] = {
        "description": "The model's answer, of whatever type its handler gives",
        "content": {"*/*": {"schema": _ANYTHING}},
    }
    return operation


def _predictions(identifier: str, text: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    """All methods of a path of predictions: TorchServe answers each in the same way."""
    operations = {
        method: _prediction(f"{identifier}{method.capitalize()}", text, parameters)
        for method in ("get", "post", "put")
    }
    operations["options"] = _operation(
        f"{identifier}Options",
        "This description, of one model",
        {"200": {"type": "object"}},
        parameters=parameters,
        errors=(404,),
    )
    return operations


_NAME = _path("model_name", "A model's name")
_VERSION = _path("model_version", "A version of it")


def _description(title: str, paths: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "openapi": "3.0.1",
        "info": {"title": title, "version": __version__},
        "paths": dict(paths),
    }


def _described() -> dict[str, Any]:
    return {
        "/api-description": {
            "get": _operation("apiDescription", "This description", {"200": {"type": "object"}})
        },
        "/": {"options": _operation("options", "This description", {"200": {"type": "object"}})},
    }


def inference_description() -> dict[str, Any]:
    """Describe the inference API."""
    paths: dict[str, Any] = {
        **_described(),
        "/ping": {
            "get": _operation("ping", "The server's health", {"200": _STATUS, "500": _STATUS, "503": _STATUS})
        },
    }
    for prefix, text in (
        ("predictions", "The model's answer to one request"),
        ("explanations", "An explanation of the model's answer to one request"),
    ):
        for path, parameters, suffix in (
            (f"/{prefix}/{{model_name}}", [_NAME], ""),
            (f"/{prefix}/{{model_name}}/{{model_version}}", [_NAME, _VERSION], "Version"),
        ):
            paths[path] = _predictions(f"{prefix}{suffix}", text, parameters)
    for verb in ("predict", "explain"):
        text = "KServe's protocol, version 1"
        paths[f"/v1/models/{{model_name}}:{verb}"] = _predictions(f"v1{verb}", text, [_NAME])
    paths["/v1/models/{model_name}"] = {
        "get": _operation(
            "v1Ready",
            "Whether a model is ready",
            {"200": _READY},
            parameters=[_NAME],
            errors=(404, 405, 503),
        )
    }
    return _description("torchport inference API", {**paths, **oip_paths()})


def management_description() -> dict[str, Any]:
    """The management API."""
    whole = {"minimum": 0, "maximum": MAX_WORKERS}
    paths: dict[str, Any] = {
        **_described(),
        "/models": {
            "get": _operation(
                "listModels",
                "Names of all models",
                {"200": _MODELS},
                parameters=[
                    _query("limit", "integer", "At most so many, 100 at most", minimum=0, maximum=100),
                    _query("next_page_token", "integer", "Where to go on", minimum=0, maximum=100000),
                ],
                errors=(400, 405),
            ),
            "post": _operation(
                "registerModel",
                "Load an archive of the store",
                {"200": _STATUS, "202": _STATUS},
                parameters=[
                    _query("url", "string", "The archive's name in the store"),
                    _query("model_name", "string", "Another name than the archive's own"),
                    _query("handler", "string", "Another handler than the archive's own"),
                    _query(
                        "batch_size", "integer", "Requests in a batch at most", minimum=1, maximum=1 << 20
                    ),
                    _query("max_batch_delay", "integer", "Kept for TorchServe's clients", minimum=0),
                    _query("response_timeout", "integer", "Seconds", minimum=1),
                    _query("startup_timeout", "integer", "Seconds", minimum=0),
                    _query("initial_workers", "integer", "Workers to start", **whole),
                    _query("synchronous", "boolean", "Answer when the workers are ready"),
                ],
                errors=(400, 403, 404, 405, 409, 413, 500, 503),
            ),
        },
    }
    paths["/reload"] = {
        "post": _operation(
            "reloadModels",
            "Pick up new and changed archives of the store",
            {"200": _RELOADED},
            parameters=[
                _query(
                    "models", "string", "Names, separated by commas; else what the server was started with"
                ),
                _query("retire", "boolean", "Remove the version that a newer one takes the default from"),
            ],
            errors=(400, 404, 405, 500),
        )
    }
    for path, parameters, suffix in (
        ("/models/{model_name}", [_NAME], ""),
        ("/models/{model_name}/{model_version}", [_NAME, _VERSION], "Version"),
    ):
        paths[path] = {
            "get": _operation(
                f"describeModel{suffix}",
                "Settings, workers and queue of a version",
                {"200": _DESCRIPTIONS},
                parameters=[*parameters, _query("customized", "boolean", "Ask the handler too")],
                errors=(400, 404, 405, 500, 503, 504),
            ),
            "put": _operation(
                f"setAutoScale{suffix}",
                "Change the number of workers",
                {"200": _STATUS, "202": _STATUS, "206": _STATUS},
                parameters=[
                    *parameters,
                    _query("min_worker", "integer", "At least so many", **whole),
                    _query("max_worker", "integer", "At most so many", **whole),
                    _query("synchronous", "boolean", "Answer when it is done"),
                    _query("timeout", "integer", "Seconds to wait for that; -1: without end", minimum=-1),
                ],
                errors=(400, 404, 405, 500, 503),
            ),
            "delete": _operation(
                f"unregisterModel{suffix}",
                "Remove a version when it has answered what waits",
                {"200": _STATUS},
                parameters=parameters,
                errors=(400, 404, 405, 500, 503),
            ),
        }
    paths["/models/{model_name}/{model_version}/set-default"] = {
        "put": _operation(
            "setDefault",
            "Let requests that name no version reach this one",
            {"200": _STATUS},
            parameters=[_NAME, _VERSION],
            errors=(404, 405, 409, 500, 503),
        )
    }
    return _description("torchport management API", paths)


def metrics_description() -> dict[str, Any]:
    """Describe the metrics API."""
    names = {
        "name": "name[]",
        "in": "query",
        "required": False,
        "schema": {"type": "array", "items": {"type": "string"}},
        "description": "Only these metrics",
    }
    operation = _operation("metrics", "Prometheus' text format", {}, parameters=[names], errors=(405,))
    operation["responses"]["200"] = {
        "description": "Metrics",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
    return _description("torchport metrics API", {**_described(), "/metrics": {"get": operation}})


def model_description(version: ModelVersion) -> dict[str, Any]:
    """Describe the inference API for one model."""
    name = version.model.name
    operation = _prediction("predictions", f"The answer of {name} to one request", [])
    return _description(f"{name} {version.model.version}", {f"/predictions/{name}": {"post": operation}})


def model_management_description(version: ModelVersion) -> dict[str, Any]:
    """Describe the management API for one model."""
    paths = management_description()["paths"]
    name = version.model.name
    kept = {
        path.replace("{model_name}", name): {
            method: {
                **operation,
                "parameters": [p for p in operation["parameters"] if p["name"] != "model_name"],
            }
            for method, operation in operations.items()
        }
        for path, operations in paths.items()
        if "{model_name}" in path
    }
    return _description(f"{name} {version.model.version}", kept)
