"""The management API: registering models, describing, listing, scaling, setting defaults, removing."""

from __future__ import annotations

import json
import re
from collections.abc import Coroutine
from typing import Any

from torchport.server.api.base import Api, Reply, Request
from torchport.server.api.descriptions import describe
from torchport.server.api.openapi import management_description, model_management_description
from torchport.server.api.predictions import headers_for_handlers
from torchport.server.api.tokens import Access, KeyKind
from torchport.server.dispatch.job import Kind, Waiter
from torchport.server.errors import (
    ApiError,
    Forbidden,
    InvalidKey,
    InvalidRequest,
    MethodNotAllowed,
    ResourceNotFound,
)
from torchport.server.models.registration import Registration
from torchport.server.models.registry import Registry
from torchport.server.models.statistics import RequestCounts
from torchport.server.settings.checks import MAX_WORKERS
from torchport.server.settings.settings import ServerSettings
from torchport.server.wire import Row
from torchport.store.folders import version_key

PAGE = 100
"""The most models on one page of the list."""


RUNTIMES = ("python", "python3")
"""What a registration may name as the runtime; there is one."""


class ManagementApi(Api):
    """Answers who runs the server."""

    key_kind = None  # `/token` wants another key than the rest.

    def __init__(
        self, settings: ServerSettings, access: Access, counts: RequestCounts, registry: Registry
    ) -> None:
        super().__init__(settings, access, counts, management_description())
        self._registry = registry

    def answer(self, request: Request) -> Reply | Coroutine[Any, Any, Reply] | None:
        if request.http.by_name.get(b"origin") is not None and not self.settings.cors_allowed_origin:
            # A page in a browser on this machine: it could speak in the name of who looks at it.
            raise Forbidden("web pages may not manage models unless cors_allowed_origin is set")
        segments = request.segments
        if segments == ("token",) and self._access.enabled:
            return self._renew_key(request)
        if self._access.enabled:
            self._access.require(KeyKind.MANAGEMENT, request.http.by_name.get(b"authorization"))
        described = self.describe(request)
        if described is not None:
            return described
        if segments[0] == "models":
            return self._models(request, segments[1:])
        if segments[:2] == ("v1", "models") and len(segments) == 3:
            request.allow("GET")
            name = segments[2].partition(":")[0]
            return Reply.of_json({"name": name, "ready": bool(self._registry.find(name).pool.ready)})
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

    async def _set_default(self, name: str, version: str) -> Reply:
        return Reply.of_json({"status": await self._registry.set_default(name, version)})

    async def _unregister(self, name: str, version: str | None) -> Reply:
        self._require_model_api()
        return Reply.of_json({"status": await self._registry.unregister(name, version)})

    def _list(self, request: Request) -> Reply:
        limit, start = request.integer("limit"), request.integer("next_page_token") or 0
        limit = PAGE if limit is None or not 0 <= limit <= PAGE else limit
        names = sorted(self._registry.models)
        last = max(0, start) + limit
        page: dict[str, Any] = {"nextPageToken": str(last)} if last <= len(names) else {}
        shown = names[max(0, start) : last]
        page["models"] = [
            {"modelName": name, "modelUrl": self._registry.find(name).model.url} for name in shown
        ]
        if last == len(names):
            del page["nextPageToken"]
        return Reply.of_json(page)

    async def _describe(self, request: Request, name: str, version: str | None) -> Reply:
        if version == "all":
            versions = self._registry.model(name).versions
            return Reply.of_json([describe(versions[number]) for number in sorted(versions, key=version_key)])
        found = self._registry.find(name, version)
        described = describe(found)
        if request.boolean("customized", False):
            headers = [*headers_for_handlers(request), (b"describe", b"True")]
            waiter = Waiter()
            found.submit(Kind.DESCRIBE, Row(request.id, headers, []), waiter, request.timeout())
            answer = await waiter.answer
            if answer.error:
                raise ApiError.of(answer)
            if answer.body:
                described["customizedMetadata"] = _metadata(answer.body)
        return Reply.of_json([described])

    async def _register(self, request: Request) -> Reply:
        self._require_model_api()
        asked = self._registration(request)
        _, said = await self._registry.register(asked)
        processing = said.startswith("Processing")
        return Reply.of_json({"status": said}, 202 if processing else 200)

    def _registration(self, request: Request) -> Registration:
        """What to register, from the query or from a JSON body.

        Raises:
            InvalidRequest: no URL, a value of the wrong type.
        """
        given: dict[str, Any] = dict(request.query)
        if request.content_type.partition(";")[0].strip().lower() == "application/json":
            try:
                given = json.loads(request.http.body)
            except (ValueError, RecursionError) as err:
                raise InvalidRequest(f"the body is not JSON: {err}") from err
            if not isinstance(given, dict):
                raise InvalidRequest("the body is to be a JSON object")
        if not given.get("url"):
            raise InvalidRequest("Parameter url is required.")
        if given.get("runtime") not in (None, "", *RUNTIMES):
            raise InvalidRequest(f"Invalid RuntimeType value: {str(given['runtime'])[:40]}")
        workers = _whole(given, "initial_workers", 0, MAX_WORKERS)
        if workers is None:
            workers = self.settings.default_workers_per_model or 0
        return Registration(
            url=_text(given, "url") or "",
            model_name=_text(given, "model_name"),
            handler=_text(given, "handler"),
            batch_size=_whole(given, "batch_size", 1, 1 << 20),
            max_batch_delay=_whole(given, "max_batch_delay", 0, 1 << 30),
            response_timeout=_whole(given, "response_timeout", 1, 1 << 30),
            startup_timeout=_whole(given, "startup_timeout", 1, 1 << 30),
            initial_workers=workers,
            synchronous=str(given.get("synchronous", "true")).lower() == "true",
        )

    async def _scale(self, request: Request, name: str, version: str | None) -> Reply:
        version = version or request.query.get("model_version")
        least = _whole(request.query, "min_worker", 0, MAX_WORKERS)
        least = 1 if least is None else least
        most = _whole(request.query, "max_worker", 0, MAX_WORKERS)
        seconds = _whole(request.query, "timeout", -1, 1 << 30)
        status, said = await self._registry.scale(
            name,
            version,
            least,
            least if most is None else most,
            synchronous=request.boolean("synchronous", False),
            timeout=None if seconds is None or seconds < 0 else seconds,
        )
        return Reply.of_json({"status": said}, status)

    def _renew_key(self, request: Request) -> Reply:
        self._access.require(KeyKind.API, request.http.by_name.get(b"authorization"))
        kinds = {"management": KeyKind.MANAGEMENT, "inference": KeyKind.INFERENCE}
        kind = kinds.get(request.query.get("type", ""))
        if kind is None:
            raise InvalidKey
        self._access.renew(kind)
        return Reply.of_json({"status": f"{kind.value} key renewed: see the key file"})


def _metadata(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")


def _text(given: dict[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise InvalidRequest(f"{name}={value!r}: text is expected")
    return value


def _whole(given: dict[str, Any], name: str, low: int, high: int) -> int | None:
    value = given.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,10}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidRequest(f"{name}={str(value)[:40]!r}: a whole number from {low} to {high} is expected")
    return value
