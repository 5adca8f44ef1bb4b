"""TorchServe's gRPC service of management: the operations of REST's management API.

`msg` holds the same as on TorchServe: the JSON of a description or of a list; for a change of the models,
the text that says what was done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from torchport.server.api.base import json_body
from torchport.server.api.descriptions import description_json, page_json
from torchport.server.errors import Forbidden, InvalidRequest
from torchport.server.grpc.calls import Call, Calls, Method
from torchport.server.grpc.messages import MANAGEMENT, management
from torchport.server.models.management import (
    HandlerQuestion,
    describe,
    list_models,
    refuse_web_pages,
    register,
    scale,
    set_default,
    unregister,
)
from torchport.server.models.registration import Outcome, Registration
from torchport.server.models.registry import Registry

_DESCRIBE = b"describe"
"""A word between the server and handlers, which look for it in a batch's first row."""


class ManagementService:
    """`ManagementAPIsService`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def methods(self, calls: Calls) -> list[Method]:
        """The methods for a gRPC server."""
        methods = {
            "DescribeModel": (management.DescribeModelRequest, self._describe),
            "ListModels": (management.ListModelsRequest, self._list),
            "RegisterModel": (management.RegisterModelRequest, self._register),
            "ScaleWorker": (management.ScaleWorkerRequest, self._scale),
            "SetDefault": (management.SetDefaultRequest, self._set_default),
            "UnregisterModel": (management.UnregisterModelRequest, self._unregister),
        }
        return calls.service(
            f"{MANAGEMENT}.ManagementAPIsService",
            unary={name: (message, self._guarded(method)) for name, (message, method) in methods.items()},
        )

    def _guarded(
        self, method: Callable[[Any, Call], Awaitable[Any]]
    ) -> Callable[[Any, Call], Awaitable[Any]]:
        async def answer(request: Any, call: Call) -> Any:
            refuse_web_pages(self._registry.settings, call.header(b"origin"))
            return await method(request, call)

        return answer

    async def _describe(self, request: Any, call: Call) -> Any:
        question = None
        if request.customized:
            headers = [pair for pair in call.metadata if pair[0] != _DESCRIBE]
            question = HandlerQuestion(id=call.id, headers=headers, timeout=call.timeout())
        name, version = _named(request), request.model_version or None
        found = await describe(self._registry, name, version, question=question)
        return _response_of_json([description_json(description) for description in found])

    async def _list(self, request: Any, call: Call) -> Any:
        limit, start = _positive(request.limit), _positive(request.next_page_token)
        return _response_of_json(page_json(list_models(self._registry, limit=limit, start=start or 0)))

    async def _register(self, request: Any, call: Call) -> Any:
        self._require_model_api()
        registration = Registration(
            url=request.url,
            model_name=request.model_name or None,
            handler=request.handler or None,
            initial_workers=_positive(request.initial_workers),
            batch_size=_positive(request.batch_size),
            max_batch_delay=_positive(request.max_batch_delay),
            response_timeout=_positive(request.response_timeout),
            startup_timeout=_positive(request.startup_timeout),
            synchronous=request.synchronous,
        )
        return _response_of(await register(self._registry, registration))

    async def _scale(self, request: Any, call: Call) -> Any:
        outcome = await scale(
            self._registry,
            _named(request),
            request.model_version or None,
            min_worker=_positive(request.min_worker),
            max_worker=_positive(request.max_worker),
            synchronous=request.synchronous,
            timeout=_positive(request.timeout),
        )
        return _response_of(outcome)

    async def _set_default(self, request: Any, call: Call) -> Any:
        # What is not named does not exist, as on TorchServe: NOT_FOUND.
        return _response_of(await set_default(self._registry, request.model_name, request.model_version))

    async def _unregister(self, request: Any, call: Call) -> Any:
        self._require_model_api()
        outcome = await unregister(self._registry, _named(request), request.model_version or None)
        return _response_of(outcome)

    def _require_model_api(self) -> None:
        if not self._registry.settings.enable_model_api:
            raise Forbidden("Model API disabled")


def _named(request: Any) -> str:
    if not request.model_name:
        raise InvalidRequest("Parameter model_name is required.")
    return str(request.model_name)


def _positive(value: int) -> int | None:
    """A field that was set: a number above 0, as on TorchServe; else None."""
    return value if value > 0 else None


def _response_of(outcome: Outcome) -> Any:
    return management.ManagementResponse(msg=outcome.message)


def _response_of_json(value: Any) -> Any:
    return management.ManagementResponse(msg=json_body(value).decode())
