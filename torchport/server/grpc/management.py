"""TorchServe's gRPC service of management: the REST API's requests in other words.

`msg` holds what TorchServe's does: the JSON of a description or of a list, and of what changes something
the text that says so.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from torchport.server.api.base import Request
from torchport.server.api.management import ManagementApi
from torchport.server.errors import Forbidden, InvalidRequest
from torchport.server.grpc.calls import Call, Calls
from torchport.server.grpc.messages import MANAGEMENT, management
from torchport.server.http.message import HttpRequest

_TIMEOUT = b"x-request-timeout-ms"


class ManagementService:
    """`ManagementAPIsService`."""

    def __init__(self, api: ManagementApi) -> None:
        self._api = api

    def handler(self, calls: Calls) -> Any:
        """The service for a gRPC server."""
        return calls.service(
            f"{MANAGEMENT}.ManagementAPIsService",
            unary={
                "DescribeModel": (management.DescribeModelRequest, self._describe),
                "ListModels": (management.ListModelsRequest, self._list),
                "RegisterModel": (management.RegisterModelRequest, self._register),
                "ScaleWorker": (management.ScaleWorkerRequest, self._scale),
                "SetDefault": (management.SetDefaultRequest, self._set_default),
                "UnregisterModel": (management.UnregisterModelRequest, self._unregister),
            },
        )

    async def _describe(self, request: Any, call: Call) -> Any:
        query = {"customized": "true"} if request.customized else {}
        return _said(await self._ask(call, "GET", _path(request), query))

    async def _list(self, request: Any, call: Call) -> Any:
        query = _given(request, "limit", "next_page_token")
        return _said(await self._ask(call, "GET", "/models", query))

    async def _register(self, request: Any, call: Call) -> Any:
        self._require_model_api()
        query = _given(
            request,
            *("url", "model_name", "handler", "initial_workers", "batch_size", "max_batch_delay"),
            *("response_timeout", "startup_timeout"),
        )
        query["synchronous"] = _word(request.synchronous)
        return _status(await self._ask(call, "POST", "/models", query))

    async def _scale(self, request: Any, call: Call) -> Any:
        query = _given(request, "min_worker", "max_worker", "timeout")
        query["synchronous"] = _word(request.synchronous)
        return _status(await self._ask(call, "PUT", _path(request), query))

    async def _set_default(self, request: Any, call: Call) -> Any:
        if not request.model_version:
            raise InvalidRequest("Parameter model_version is required.")
        return _status(await self._ask(call, "PUT", f"{_path(request)}/set-default", {}))

    async def _unregister(self, request: Any, call: Call) -> Any:
        self._require_model_api()
        return _status(await self._ask(call, "DELETE", _path(request), {}))

    def _require_model_api(self) -> None:
        if not self._api.settings.enable_model_api:
            raise Forbidden("Model API disabled")

    async def _ask(self, call: Call, method: str, path: str, query: Mapping[str, str]) -> str:
        """The body of the REST API's answer."""
        http = HttpRequest()  # It is answered by value: what the API answers is read here and not sent.
        http.method, http.path, http.query = method, path.encode(), urlencode(query).encode()
        for name, value in call.metadata:
            if name != _TIMEOUT:
                http.add_header(name, value)
        timeout = call.timeout()
        if timeout is not None:
            http.add_header(_TIMEOUT, b"%d" % min(max(1, timeout * 1000), 999_999_999))
        reply = self._api.answer(Request(http))
        if inspect.isawaitable(reply):
            reply = await reply
        if reply is None:
            raise TypeError(f"{method} {path} answers by itself")
        return reply.body.decode()


def _path(request: Any) -> str:
    if not request.model_name:
        raise InvalidRequest("Parameter model_name is required.")
    parts = [request.model_name, *([request.model_version] if request.model_version else [])]
    return "/models/" + "/".join(quote(part, safe="") for part in parts)


def _given(request: Any, *names: str) -> dict[str, str]:
    """Those fields that were set: a number above 0, a text that is not empty, as TorchServe has it."""
    values = {name: getattr(request, name) for name in names}
    return {
        name: str(value) for name, value in values.items() if value and (isinstance(value, str) or value > 0)
    }


def _word(value: bool) -> str:
    return "true" if value else "false"


def _said(body: str) -> Any:
    return management.ManagementResponse(msg=body)


def _status(body: str) -> Any:
    return management.ManagementResponse(msg=json.loads(body)["status"])
