"""The management API: registers, describes, lists, scales and removes models, and sets defaults."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Coroutine, Mapping
from dataclasses import asdict
from typing import Any

from torchport.server.api.base import Api, Reply, Request
from torchport.server.api.descriptions import description_json, model_ready_reply, page_json
from torchport.server.api.openapi import management_description, model_management_description
from torchport.server.api.predictions import headers_for_handlers
from torchport.server.api.tokens import Access, KeyKind
from torchport.server.errors import InvalidKey, InvalidRequest, MethodNotAllowed, ResourceNotFound
from torchport.server.models.management import (
    HandlerQuestion,
    describe,
    list_models,
    out_of_range,
    refuse_web_pages,
    register,
    scale,
    set_default,
    unregister,
)
from torchport.server.models.registration import Outcome, Progress, Registration
from torchport.server.models.registry import Registry
from torchport.server.models.reloading import reload, require_no_failure
from torchport.server.models.statistics import RequestCounts
from torchport.server.settings.settings import ServerSettings

RUNTIMES = ("python", "python3")
"""Names that a registration may give as the runtime; both mean the same one."""

MAX_BODY = 1 << 16
"""Maximum bytes of a registration in JSON."""

_STATUSES = {Progress.DONE: 200, Progress.STARTED: 202, Progress.PARTIAL: 206}


class ManagementApi(Api):
    """Answers the operators of the server."""

    def __init__(
        self, settings: ServerSettings, access: Access, counts: RequestCounts, registry: Registry
    ) -> None:
        super().__init__(settings, access, counts, management_description())
        self._registry = registry

    def require_key(self, request: Request) -> None:
        refuse_web_pages(self.settings, request.http.by_name.get(b"origin"))
        if self._access.enabled:
            # `/token` needs another key than the rest.
            kind = KeyKind.API if request.segments == ("token",) else KeyKind.MANAGEMENT
            self._access.require(kind, request.http.by_name.get(b"authorization"))

    def answer(self, request: Request) -> Reply | Coroutine[Any, Any, Reply | None] | None:
        segments = request.segments
        if segments == ("token",) and self._access.enabled:
            return self._renew_key(request)
        described = self.describe(request)
        if described is not None:
            return described
        if segments[0] == "models":
            return self._models(request, segments[1:])
        if segments == ("reload",):
            request.allow("POST")
            return self._reload(request)
        if segments[:2] == ("v1", "models") and len(segments) == 3:
            request.allow("GET")
            return model_ready_reply(self._registry, segments[2].partition(":")[0])
        raise ResourceNotFound

    def _models(self, request: Request, segments: tuple[str, ...]) -> Reply | Coroutine[Any, Any, Reply]:
        if not segments:
            if request.method == "GET":
                return self._list(request)
            if request.method == "POST":
                return self._register(request)
            raise MethodNotAllowed("GET", "POST")
        name, version = segments[0], segments[1] if len(segments) > 1 else None
        if len(segments) == 3 and segments[2] == "set-default":
            request.allow("PUT")
            return self._set_default(name, segments[1])
        if len(segments) > 2:
            raise ResourceNotFound
        if request.method == "GET":
            return self._describe(request, name, version)
        if request.method == "PUT":
            return self._scale(request, name, version)
        if request.method == "DELETE":
            return self._unregister(name, version)
        if request.method == "OPTIONS":
            return Reply.of_json(model_management_description(self._registry.find(name, version)))
        raise MethodNotAllowed("GET", "PUT", "DELETE", "OPTIONS")

    def _require_model_api(self) -> None:
        if not self.settings.enable_model_api:
            raise MethodNotAllowed("GET")

    def _list(self, request: Request) -> Reply:
        limit, start = request.integer("limit"), request.integer("next_page_token") or 0
        return Reply.of_json(page_json(list_models(self._registry, limit=limit, start=start)))

    async def _describe(self, request: Request, name: str, version: str | None) -> Reply:
        question = None
        if request.boolean("customized", False):
            headers = headers_for_handlers(request)
            question = HandlerQuestion(id=request.id, headers=headers, timeout=request.timeout())
        found = await describe(self._registry, name, version, question=question)
        return Reply.of_json([description_json(description) for description in found])

    async def _register(self, request: Request) -> Reply:
        self._require_model_api()
        return _reply_of(await register(self._registry, _registration(request)))

    async def _scale(self, request: Request, name: str, version: str | None) -> Reply:
        outcome = await scale(
            self._registry,
            name,
            version or request.query.get("model_version"),
            min_worker=_whole(request.query, "min_worker"),
            max_worker=_whole(request.query, "max_worker"),
            synchronous=request.boolean("synchronous", False),
            timeout=_whole(request.query, "timeout"),
        )
        return _reply_of(outcome)

    async def _set_default(self, name: str, version: str) -> Reply:
        return _reply_of(await set_default(self._registry, name, version))

    async def _unregister(self, name: str, version: str | None) -> Reply:
        self._require_model_api()
        return _reply_of(await unregister(self._registry, name, version))

    async def _reload(self, request: Request) -> Reply:
        # Models come from the store, as at a start: it needs no enable_model_api.
        names = [name.strip() for name in request.query.get("models", "").split(",") if name.strip()]
        retire = request.boolean("retire", False)
        done = require_no_failure(await reload(self._registry, names, retire=retire))
        return Reply.of_json({"status": str(done), **asdict(done)})

    async def _renew_key(self, request: Request) -> Reply:
        kinds = {"management": KeyKind.MANAGEMENT, "inference": KeyKind.INFERENCE}
        kind = kinds.get(request.query.get("type", ""))
        if kind is None:
            raise InvalidKey
        await asyncio.to_thread(self._access.renew, kind)
        return Reply.of_json({"status": f"{kind.value} key renewed: see the key file"})


def _reply_of(outcome: Outcome) -> Reply:
    return Reply.of_json({"status": outcome.message}, _STATUSES[outcome.progress])


def _registration(request: Request) -> Registration:
    """The registration that the query or a JSON body asks for.

    Raises:
        InvalidRequest: a value has the wrong type, or the runtime is unknown.
    """
    given: dict[str, Any] = dict(request.query)
    if request.content_type.partition(";")[0].strip().lower() == "application/json":
        if len(request.http.body) > MAX_BODY:
            raise InvalidRequest(f"a registration of {len(request.http.body)} bytes: at most {MAX_BODY}")
        try:
            given = json.loads(bytes(request.http.body))
        except (ValueError, RecursionError) as err:
            raise InvalidRequest(f"the body is not JSON: {err}") from err
        if not isinstance(given, dict):
            raise InvalidRequest("the body is to be a JSON object")
    if given.get("runtime") not in (None, "", *RUNTIMES):
        raise InvalidRequest(f"Invalid RuntimeType value: {str(given['runtime'])[:40]}")
    return Registration(
        url=_text(given, "url") or "",
        model_name=_text(given, "model_name"),
        handler=_text(given, "handler"),
        batch_size=_whole(given, "batch_size"),
        max_batch_delay=_whole(given, "max_batch_delay"),
        response_timeout=_whole(given, "response_timeout"),
        startup_timeout=_whole(given, "startup_timeout"),
        initial_workers=_whole(given, "initial_workers"),
        synchronous=str(given.get("synchronous", "true")).lower() == "true",
    )


def _text(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise InvalidRequest(f"{name}={value!r}: text is expected")
    return value


def _whole(given: Mapping[str, Any], name: str) -> int | None:
    """A whole number; its range is for the operation to check."""
    value = given.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,10}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise out_of_range(name, value)
    return value
