"""REST's part of the repository, statistics and configuration extensions: `/v2/repository` and more.

POST /v2/repository/index
POST /v2/repository/models/linear/load
POST /v2/repository/models/linear/unload
GET  /v2/models/linear/stats
"""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import Any

from torchport.server.api.base import Reply, Request
from torchport.server.errors import InvalidRequest, ResourceNotFound
from torchport.server.models.registry import Registry
from torchport.server.open_inference.repository import (
    load_model,
    model_index,
    require_model_control,
    unload_model,
)

MAX_BODY = 1 << 16
"""Maximum bytes of a request's JSON."""


def changes_models(request: Request) -> bool:
    """Whether the request loads or unloads a model, for which it needs the management key."""
    return request.segments[:3] == ("v2", "repository", "models")


def answer_repository(registry: Registry, request: Request) -> Coroutine[Any, Any, Reply]:
    """Answer a request to a path under `/v2/repository`.

    Raises:
        ApiError: the error that the client gets.
    """
    settings = registry.settings
    match request.segments[2:]:
        case ["index"]:
            request.allow("POST")
            return _index(registry, _body(request))
        case ["models", name, "load" | "unload" as action]:
            request.allow("POST")
            require_model_control(
                settings,
                request.http.by_name.get(b"origin"),
                asked=settings.inference,
                managed=settings.management,
            )
            return _change(registry, name, action, _body(request))
    raise ResourceNotFound


def _body(request: Request) -> dict[str, Any]:
    """The body's JSON object; an empty one without a body."""
    body = bytes(request.http.body[: MAX_BODY + 1])
    if len(body) > MAX_BODY:
        raise InvalidRequest(f"a body of {len(request.http.body)} bytes: at most {MAX_BODY} are expected")
    try:
        said = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as err:
        raise InvalidRequest(f"the body is not JSON: {err}") from err
    if not isinstance(said, dict):
        raise InvalidRequest("the body is to be a JSON object")
    return said


async def _index(registry: Registry, body: dict[str, Any]) -> Reply:
    ready = body.get("ready", False)
    if not isinstance(ready, bool):
        raise InvalidRequest("ready: true or false is expected")
    return Reply.of_json(await model_index(registry, only_ready=ready))


async def _change(registry: Registry, name: str, action: str, body: dict[str, Any]) -> Reply:
    parameters = body.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidRequest("parameters: an object is expected")
    if action == "load":
        await load_model(registry, name, parameters)
    else:
        await unload_model(registry, name)
    return Reply.of_json({})
