"""The Open Inference Protocol (KServe's version 2) over REST: `/v2`.

    GET  /v2/models/linear
    POST /v2/models/linear/infer
    {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [4.0]}]}

Tensors go to the model's graph directly, without the handler's decoding and encoding.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from torchport.server.api.base import Api, Reply, Request
from torchport.server.api.open_inference_repository import answer_repository
from torchport.server.api.open_inference_requests import (
    LENGTH_HEADER,
    InferenceRequest,
    is_long_to_read,
    read_request,
)
from torchport.server.api.predictions import Predictions
from torchport.server.dispatch.job import Job, Kind
from torchport.server.errors import AnswerTooLarge, ResourceNotFound
from torchport.server.http.parsing import INLINE_BYTES, in_parsing_thread
from torchport.server.models.registry import Registry
from torchport.server.models.version import ModelVersion
from torchport.server.open_inference.metadata import model_metadata, server_metadata
from torchport.server.open_inference.repository import model_config, model_statistics
from torchport.server.open_inference.tensors import require_size
from torchport.server.wire import Answer


class OipApi:
    """Answers requests to paths under `/v2`."""

    def __init__(self, api: Api, predictions: Predictions, registry: Registry) -> None:
        self._api, self._predictions, self._registry = api, predictions, registry

    def answer(self, request: Request) -> Reply | Coroutine[Any, Any, Reply | None] | None:
        """Answer one request; None if the answer is sent later.

        Raises:
            ApiError: the error that the client gets.
        """
        match request.segments[1:]:
            case []:
                request.allow("GET")
                return Reply.of_json(server_metadata(self._registry.settings))
            case ["health", "live"]:
                request.allow("GET")
                return Reply.of_json({"live": True})
            case ["health", "ready"]:
                request.allow("GET")
                ready = self._registry.is_ready
                return Reply.of_json({"ready": ready}, 200 if ready else 503)
            case ["repository", *_]:
                return answer_repository(self._registry, request)
            case ["models", "stats"]:
                request.allow("GET")
                return self._statistics(None, None)
            case ["models", name, *more]:
                return self._model(request, name, more)
        raise ResourceNotFound

    def _model(
        self, request: Request, name: str, more: list[str]
    ) -> Reply | Coroutine[Any, Any, Reply | None] | None:
        number = None
        if len(more) >= 2 and more[0] == "versions":
            number, more = more[1], more[2:]
        match more:
            case []:
                request.allow("GET")
                return Reply.of_json(model_metadata(self._registry, name, number))
            case ["ready"]:
                request.allow("GET")
                ready = self._registry.is_model_ready(name, number)
                return Reply.of_json({"name": name, "ready": ready}, 200 if ready else 503)
            case ["stats"]:
                request.allow("GET")
                return self._statistics(name, number)
            case ["config"]:
                request.allow("GET")
                return Reply.of_json(model_config(self._registry, name, number))
            case ["infer"]:
                request.allow("POST")
                return self._infer(request, name, number)
        raise ResourceNotFound

    def _statistics(self, name: str | None, number: str | None) -> Reply:
        return Reply.of_json({"model_stats": model_statistics(self._registry, name, number)})

    def _infer(
        self, request: Request, name: str, number: str | None
    ) -> Reply | Coroutine[Any, Any, Reply | None] | None:
        version = self._registry.find(name, number)
        if not takes_tensors(version):
            # A handler of TorchServe's reads the protocol by itself, or by the kservev2 envelope.
            return self._predictions.predict(request, name, number, more=[(b"explain", b"False")])
        version.require_room()
        body, length = request.http.body, request.http.by_name.get(LENGTH_HEADER)
        if is_long_to_read(body, length):

            async def read_and_submit() -> None:
                self._submit(request, name, number, await in_parsing_thread(read_request, body, length))

            return read_and_submit()
        self._submit(request, name, number, read_request(body, length))
        return None

    def _submit(self, request: Request, name: str, number: str | None, asked: InferenceRequest) -> None:
        require_size(asked.row.inputs, self._api.settings.max_request_size)
        # Looked for again: while the request was read, another may have become the default.
        version = self._registry.find(name, number)
        route = self._registry.model(name).route(number)
        caller = _Inference(self._predictions, request, asked, version)
        version.submit(Kind.TENSORS, asked.row, caller, request.timeout(), route=route)


def takes_tensors(version: ModelVersion) -> bool:
    """Whether the version takes tensors: torchport made its archive."""
    ready = version.pool.ready
    return bool(ready[0].signature if ready else version.model.config.get("torchport"))


class _Inference:
    """Receives a worker's tensors and sends them to the client."""

    __slots__ = ("_api", "_asked", "_predictions", "_request", "_version")

    def __init__(
        self,
        predictions: Predictions,
        request: Request,
        asked: InferenceRequest,
        version: ModelVersion,
    ) -> None:
        self._predictions, self._api = predictions, predictions.api
        self._request, self._asked, self._version = request, asked, version
        asked.row.id = request.id

    @property
    def is_gone(self) -> bool:
        return self._request.http.responder.is_gone

    def answered(self, job: Job, answer: Answer) -> None:
        if sum(len(tensor.data) for tensor in answer.tensors) > INLINE_BYTES:
            self._api.in_background(self._answer_later(answer))
            return
        try:
            reply = self._reply(answer)
        except Exception as err:
            reply = self._api.reply_to(self._request, err)
        self._api.send(self._request, reply)

    async def _answer_later(self, answer: Answer) -> None:
        """Write a large answer in the parsing thread."""
        try:
            reply = await in_parsing_thread(self._reply, answer)
        except Exception as err:
            reply = self._api.reply_to(self._request, err)
        self._api.send(self._request, reply)

    def streamed(self, job: Job, piece: Answer) -> None:
        """Ignore a piece: tensors are not streamed."""

    def failed(self, job: Job, error: Exception) -> None:
        self._api.send(self._request, self._api.reply_to(self._request, error))

    def _reply(self, answer: Answer) -> Reply:
        if answer.error:
            return self._predictions.reply_of(self._request, answer)
        model = self._version.model
        reply = self._asked.reply(model.name, model.version, answer.tensors)
        limit = self._api.settings.max_response_size
        if len(reply.body) > limit:
            raise AnswerTooLarge(len(reply.body), limit)
        return reply
