"""The inference API: `/ping`, `/predictions`, `/explanations`, KServe's v1 paths.

TorchServe's paths for older clients are answered too.

Requests come as bodies of any type, as forms with named parts, or as JSON; see `forms`.
"""

from __future__ import annotations

import re
from collections.abc import Coroutine, Iterable
from typing import Any

from torchport.server.api.base import Api, Reply, Request
from torchport.server.api.descriptions import model_ready_reply
from torchport.server.api.forms import fields_of, is_form, is_long_to_read
from torchport.server.api.open_inference import OipApi
from torchport.server.api.open_inference_repository import changes_models
from torchport.server.api.open_inference_requests import LENGTH_HEADER
from torchport.server.api.openapi import inference_description
from torchport.server.api.predictions import Predictions
from torchport.server.api.tokens import Access, KeyKind
from torchport.server.api.tracing import Tracing
from torchport.server.dispatch.arena import ALIGNMENT
from torchport.server.errors import ApiError, InvalidRequest, ResourceNotFound, ServiceUnavailable
from torchport.server.http.decompressing import HEADER
from torchport.server.http.message import HttpRequest
from torchport.server.http.parsing import in_parsing_thread
from torchport.server.models.registry import Registry
from torchport.server.models.statistics import RequestCounts
from torchport.server.settings.settings import ServerSettings
from torchport.server.wire import Field

_V1 = re.compile(r"(?P<model>[^:]+):(?P<verb>predict|explain)")
MAX_DIGITS = 18
"""Of a length in a header."""

_EXPLAIN = {True: (b"explain", b"True"), False: (b"explain", b"False")}


class InferenceApi(Api):
    """Answers clients that send requests to models."""

    key_kind = KeyKind.INFERENCE

    def __init__(
        self,
        settings: ServerSettings,
        access: Access,
        counts: RequestCounts,
        registry: Registry,
        tracing: Tracing | None = None,
    ) -> None:
        super().__init__(settings, access, counts, inference_description())
        self._registry = registry
        self._predictions = Predictions(self, registry, tracing)
        self._oip = OipApi(self, self._predictions, registry)

    def require_key(self, request: Request) -> None:
        if self._access.enabled and changes_models(request):
            self._access.require(KeyKind.MANAGEMENT, request.http.by_name.get(b"authorization"))
        else:
            super().require_key(request)

    def answer(self, request: Request) -> Reply | Coroutine[Any, Any, Reply | None] | None:
        segments = request.segments
        first = segments[0]
        if first in ("predictions", "explanations") and len(segments) >= 2:
            explain = first == "explanations"
            version, path = None, b""
            if len(segments) > 2:
                version, path = segments[2], "/".join(segments[3:]).encode("utf-8", "replace")
            more = (b"url_path", path), _EXPLAIN[explain]
            return self._predictions.predict(request, segments[1], version, explain=explain, more=more)
        if first == "ping":
            return self._ping()
        if first == "v2":
            return self._oip.answer(request)
        described = self.describe(request)
        if described is not None:
            return described
        if first == "v1":
            return self._kserve_v1(request, segments)
        if first == "invocations" and len(segments) == 1:
            return self._invoke(request)
        if first == "models" and len(segments) == 3 and segments[2] == "invoke":
            return self._predictions.predict(request, segments[1], None, with_query=True)
        if len(segments) in (2, 3) and segments[-1] == "predict":
            version = segments[1] if len(segments) == 3 else None
            return self._predictions.predict(request, first, version, with_query=True)
        raise ResourceNotFound

    def room_for(self, request: HttpRequest, length: int) -> memoryview | None:
        """Memory that the workers of the model share, which the path names.

        A form is taken apart, JSON of tensors is read here, and what is compressed takes other bytes in the
        end: they get none.
        """
        if HEADER in request.by_name:
            return None
        match request.path.decode("utf-8", "replace").split("/")[1:]:
            case ["v2", "models", name, "infer"] | ["v2", "models", name, "versions", _, "infer"] as parts:
                head = request.by_name.get(LENGTH_HEADER, b"")
                if not head.isdigit() or len(head) > MAX_DIGITS:
                    return None
                number = parts[4] if len(parts) > 4 else None
                # So that the first tensor, behind the JSON, is aligned.
                return self._room_of(name, number, length, -int(head) % ALIGNMENT)
            case ["predictions", name, *more] if not is_form(request.content_type):
                return self._room_of(name, more[0] if more else None, length, 0)
        return None

    def _room_of(self, name: str, number: str | None, length: int, skipped: int) -> memoryview | None:
        try:
            arena = self._registry.find(name, number).arena
        except ApiError:
            return None  # Who answers the request says what is wrong with it.
        room = arena.lease(skipped + length) if arena is not None else None
        return None if room is None else room[skipped:]

    def _ping(self) -> Reply:
        if self._registry.draining or self._registry.is_starting:
            return Reply.of_json({"status": "Unhealthy"}, 503)
        if self._registry.is_healthy:
            return Reply.of_json({"status": "Healthy"})
        return Reply.of_json({"status": "Unhealthy"}, 500)

    def _invoke(self, request: Request) -> Reply | Coroutine[Any, Any, Reply | None] | None:
        """Answer SageMaker's path, which names no model: the query or a field of the form may."""
        name = request.query.get("model_name")
        if not name and len(self._registry.models) == 1 and self._registry.expected.is_over:
            name = next(iter(self._registry.models))
        if name:
            return self._predictions.predict(request, name, None, with_query=True)
        body, content_type = request.http.body, request.content_type
        if not is_long_to_read(body, content_type):
            return self._invoke_named(request, fields_of(body, content_type))

        async def read_and_invoke() -> Reply | None:
            answered = self._invoke_named(request, await in_parsing_thread(fields_of, body, content_type))
            if isinstance(answered, Coroutine):
                await answered
                return None
            return answered

        return read_and_invoke()

    def _invoke_named(
        self, request: Request, fields: Iterable[Field]
    ) -> Reply | Coroutine[Any, Any, None] | None:
        for field in fields:
            if field.name == "model_name":
                name = bytes(field.value).decode("utf-8", "replace")
                return self._predictions.predict(request, name, None, with_query=True)
        if not self._registry.expected.is_over:
            raise ServiceUnavailable("the server is loading its models: try again later")
        raise InvalidRequest("Parameter model_name is required.")

    def _kserve_v1(
        self, request: Request, segments: tuple[str, ...]
    ) -> Reply | Coroutine[Any, Any, None] | None:
        if len(segments) != 3 or segments[1] != "models":
            raise ResourceNotFound
        match = _V1.fullmatch(segments[2])
        if match is not None:
            explain = match["verb"] == "explain"
            return self._predictions.predict(
                request, match["model"], None, explain=explain, more=[_EXPLAIN[explain]]
            )
        if ":" in segments[2]:
            raise ResourceNotFound
        request.allow("GET")
        return model_ready_reply(self._registry, segments[2])
