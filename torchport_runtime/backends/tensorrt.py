"""Options of ONNX Runtime's TensorRT provider: shapes, precision, engine cache.

    provider_options(Path("main.onnx"), signature, BackendOptions(device="cuda", tensorrt=True), "1.31.1")

TensorRT compiles a graph for one GPU, which takes minutes. The engine is kept in a folder that is named by
a hash of the artifact, ONNX Runtime's version, the GPU and everything else that the engine depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchport_runtime.backends.cuda import device_index, device_name
from torchport_runtime.errors import BackendError
from torchport_runtime.options import BackendOptions
from torchport_runtime.signature import Signature

PROVIDER = "TensorrtExecutionProvider"

USUAL_SIZE = 8
"""Size of symbolic dimensions for which kernels are chosen, within their bounds. It is most servers' batch
size."""


def provider_options(
    path: Path,
    signature: Signature,
    options: BackendOptions,
    onnxruntime_version: str,
    environ: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The provider's options for one artifact.

    The engines' folder is made, for this user alone.

    Raises:
        BackendError: the folder cannot be made.
    """
    index = device_index(options.device)
    numerics = {
        "device_id": str(index),
        "trt_fp16_enable": _flag(options.precision == "float16"),
        "trt_bf16_enable": _flag(options.precision == "bfloat16"),
        **profile_shapes(signature),
    }
    made_of = {
        "artifact": hashlib.sha256(path.read_bytes()).hexdigest(),
        "onnxruntime": onnxruntime_version,
        "gpu": device_name(index),
        "options": numerics,
        "numerics": options.numerics(),
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_folder(os.environ if environ is None else environ) / key
    try:
        # Engines are programs: nobody else is to put one here.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as err:
        raise BackendError(
            f"tensorrt: true keeps its engines in {folder}, which cannot be made ({err.strerror}): set "
            "TORCHPORT_CACHE to a folder that can be written"
        ) from err
    return {
        **numerics,
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
    }


def profile_shapes(signature: Signature) -> dict[str, str]:
    """Minimum, usual and maximum shape of every input, for the provider.

    Raises:
        BackendError: an input's name holds `:` or `,`.
    """
    sizes: dict[str, dict[str, int]] = {"min": {}, "opt": {}, "max": {}}
    for symbol, (low, high) in signature.dims.items():
        sizes["min"][symbol], sizes["max"][symbol] = low, high
        sizes["opt"][symbol] = min(high, max(low, USUAL_SIZE))
    for name in signature.inputs:
        if ":" in name or "," in name:
            raise BackendError(f"tensorrt: true: the input's name {name!r} holds a ':' or a ','")
    return {
        f"trt_profile_{which}_shapes": ",".join(
            f"{name}:{'x'.join(str(size) for size in spec.resolve(of))}"
            for name, spec in signature.inputs.items()
            if spec.shape
        )
        for which, of in sizes.items()
    }


def cache_folder(environ: Mapping[str, str]) -> Path:
    """The engines' folder, below `TORCHPORT_CACHE` or the user's cache folder."""
    own = environ.get("TORCHPORT_CACHE")
    if own:
        return Path(own).expanduser().resolve() / "tensorrt"
    user = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user) / "torchport" / "tensorrt"


def why_unused(session: Any) -> str | None:
    """Why a session does not run by TensorRT; None if it does."""
    if session.get_providers()[0] != PROVIDER:
        return "TensorRT did not start (are its libraries there, for this ONNX Runtime? pip install tensorrt)"
    if hasattr(session, "get_provider_graph_assignment_info"):
        nodes = {part.ep_name: part.get_nodes() for part in session.get_provider_graph_assignment_info()}
        if not nodes.get(PROVIDER):
            return f"TensorRT takes none of the graph's nodes; {', '.join(nodes) or 'nothing'} runs them"
    return None


def _flag(value: bool) -> str:
    return "True" if value else "False"
