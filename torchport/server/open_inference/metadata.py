"""The Open Inference Protocol's metadata of the server and its models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torchport.server.errors import ServiceUnavailable
from torchport.server.models.registry import Registry
from torchport.server.models.version import ModelVersion
from torchport.server.open_inference.tensors import datatype_of
from torchport.server.settings.settings import ServerSettings
from torchport.version import __version__

EXTENSIONS = ("binary_tensor_data", "model_configuration", "statistics")
MODEL_CONTROL = "model_repository"
"""Extension that a server has whose settings allow to load and unload models."""

MAIN_GRAPH = "main"
"""The graph that requests enter unless their parameter `graph` names another."""

_PLATFORMS = {
    "onnxruntime": "onnx_onnxv1",
    "torchscript": "pytorch_torchscript",
    "pt2": "pytorch_pt2",
    "aotinductor": "pytorch_aotinductor",
}


def server_metadata(settings: ServerSettings) -> dict[str, Any]:
    """The server's name, version and extensions of the protocol."""
    control = [MODEL_CONTROL] if settings.enable_model_api else []
    return {"name": "torchport", "version": __version__, "extensions": [*EXTENSIONS, *control]}


def model_metadata(registry: Registry, name: str, number: str | None) -> dict[str, Any]:
    """A model's versions, platform, inputs and outputs.

    The last three are empty for an archive that torchport did not make, because it has no signature.

    Raises:
        ModelNotFound, ModelVersionNotFound: the model or the version is missing.
        ServiceUnavailable: no worker is ready that could describe the model.
    """
    version = registry.find(name, number)
    if not version.pool.ready:
        raise ServiceUnavailable(f'Model "{name}" has no worker yet that could describe it: try again later')
    signatures: Mapping[str, Any] = version.pool.ready[0].signature
    signature = signatures.get(MAIN_GRAPH, {})
    return {
        "name": name,
        "versions": list(registry.model(name).versions),
        "platform": _platform(version) if signature else "",
        "inputs": _tensors(signature.get("inputs", {})),
        "outputs": _tensors(signature.get("outputs", {})),
    }


def _tensors(specs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Metadata of tensors; -1 stands for a dimension that requests choose."""
    return [
        {
            "name": name,
            "datatype": datatype_of(spec["dtype"]),
            "shape": [size if isinstance(size, int) else -1 for size in spec["shape"]],
        }
        for name, spec in specs.items()
    ]


def _platform(version: ModelVersion) -> str:
    config = version.model.config.get("torchport")
    configured = config.get("backend") if isinstance(config, dict) else None
    backend = os.environ.get("TORCHPORT_BACKEND") or configured or "onnxruntime"
    return _PLATFORMS.get(str(backend), "")
