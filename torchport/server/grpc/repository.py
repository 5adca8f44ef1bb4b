"""gRPC's part of the repository, statistics and configuration extensions of the Open Inference Protocol."""

from __future__ import annotations

from typing import Any

from torchport.server.errors import InvalidRequest
from torchport.server.grpc.calls import Call, Calls, Method
from torchport.server.grpc.messages import MODEL_DATA_TYPES, OPEN_INFERENCE, open_inference
from torchport.server.models.registry import Registry
from torchport.server.open_inference.repository import (
    load_model,
    model_config,
    model_index,
    model_statistics,
    require_model_control,
    unload_model,
)

_KINDS = {"KIND_GPU": 1, "KIND_CPU": 2}


class RepositoryService:
    """The methods of `GRPCInferenceService` that tell of models, and those that load and unload them."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def methods(self, asking: Calls, managing: Calls) -> list[Method]:
        """The methods for a gRPC server; `managing` asks for the management key."""
        messages = open_inference
        telling = {
            "RepositoryIndex": (messages.RepositoryIndexRequest, self._index),
            "ModelStatistics": (messages.ModelStatisticsRequest, self._statistics),
            "ModelConfig": (messages.ModelConfigRequest, self._config),
        }
        changing = {
            "RepositoryModelLoad": (messages.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": (messages.RepositoryModelUnloadRequest, self._unload),
        }
        service = f"{OPEN_INFERENCE[0]}.GRPCInferenceService"
        return [*asking.service(service, unary=telling), *managing.service(service, unary=changing)]

    async def _index(self, request: Any, call: Call) -> Any:
        models = await model_index(self._registry, only_ready=request.ready)
        return open_inference.RepositoryIndexResponse(models=models)

    async def _statistics(self, request: Any, call: Call) -> Any:
        found = model_statistics(self._registry, request.name or None, request.version or None)
        return open_inference.ModelStatisticsResponse(model_stats=found)

    async def _config(self, request: Any, call: Call) -> Any:
        if not request.name:
            raise InvalidRequest("a model's name is required")
        config = model_config(self._registry, request.name, request.version or None)
        for tensor in (*config["input"], *config["output"]):
            tensor["data_type"] = MODEL_DATA_TYPES[tensor["data_type"]]
        for group in config["instance_group"]:
            group["kind"] = _KINDS[group["kind"]]
        return open_inference.ModelConfigResponse(config=config)

    async def _load(self, request: Any, call: Call) -> Any:
        name = self._controlled(request, call)
        await load_model(self._registry, name, request.parameters)
        return open_inference.RepositoryModelLoadResponse()

    async def _unload(self, request: Any, call: Call) -> Any:
        name = self._controlled(request, call)
        await unload_model(self._registry, name)
        return open_inference.RepositoryModelUnloadResponse()

    def _controlled(self, request: Any, call: Call) -> str:
        settings = self._registry.settings
        require_model_control(
            settings, call.header(b"origin"), asked=settings.grpc_inference, managed=settings.grpc_management
        )
        if not request.model_name:
            raise InvalidRequest("a model's name is required")
        return str(request.model_name)
