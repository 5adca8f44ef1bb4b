"""Backends run exported graphs, with numpy arrays by name in and out.

    backend = open_backend(Path("main.onnx"), signature, BackendOptions(device="cpu"))
    backend.run({"x": np.array([[4.0]], np.float32)})     # {"y": array([[14.17]], dtype=float32)}

The ONNX Runtime backend never imports torch; the other backends do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from torchport_runtime.backends.aotinductor import AotInductorBackend
from torchport_runtime.backends.cuda import cuda_device_count
from torchport_runtime.backends.onnxruntime import OnnxRuntimeBackend
from torchport_runtime.backends.torch import Pt2Backend, TorchScriptBackend, named_outputs
from torchport_runtime.errors import BackendError
from torchport_runtime.options import BackendOptions
from torchport_runtime.signature import Signature

__all__ = [
    "AotInductorBackend",
    "Backend",
    "OnnxRuntimeBackend",
    "Pt2Backend",
    "Tensors",
    "TorchScriptBackend",
    "cuda_device_count",
    "named_outputs",
    "open_backend",
]

Tensors = Mapping[str, np.ndarray]


class Backend(Protocol):
    """A loaded graph; `device` is the one in use, "cpu" or "cuda:N"."""

    device: str
    provider: str

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Compute the outputs, by the signature's names.

        Raises:
            BackendError: the graph failed on these inputs.
        """
        ...


_KINDS: Mapping[str, Callable[[Path, Signature, BackendOptions], Backend]] = {
    "onnxruntime": OnnxRuntimeBackend,
    "torchscript": TorchScriptBackend,
    "pt2": Pt2Backend,
    "aotinductor": AotInductorBackend,
}


def open_backend(path: Path, signature: Signature, options: BackendOptions) -> Backend:
    """Load the artifact at `path` with the backend that `options` names.

    Raises:
        BackendError: the file is damaged, or the library or the device is missing.
    """
    if not path.is_file() and options.precision == "int8":
        raise BackendError(
            f"precision 'int8' needs {path.name}, which is not there: torchport quantize makes it, and "
            "torchport package then puts it into the archive; or ask for precision float32"
        )
    if not path.is_file() and options.precision != "float32":
        raise BackendError(
            f"precision {options.precision!r} needs {path.name}, which is not there: name it in the recipe's "
            "precisions, export, verify and package again; or ask for precision float32"
        )
    if not path.is_file():
        raise BackendError(
            f"backend {options.backend!r} needs {path.name}, which is not there: export it, or "
            "package the archive with it"
        )
    return _KINDS[options.backend](path, signature, options)
