"""Options of a model's backend: the `torchport:` block of `model-config.yaml`.

    torchport:
      backend: onnxruntime     # or torchscript, pt2, aotinductor
      device: auto             # or cpu, cuda, cuda:1
      threads: 0               # 0: every core that this process may use
      tf32: false              # CUDA: allow TensorFloat-32
      precision: float32       # or float16, bfloat16; or int8: what `torchport quantize` made, on the CPU
      tensorrt: false          # onnxruntime on cuda: TensorRT first, then CUDA
      io_binding: true         # onnxruntime: outputs stay on the device until the run has ended; on CUDA
      shadow: {backend: torchscript, fraction: 0.1}    # run again, to compare: see shadow_options.py

`TORCHPORT_BACKEND`, `TORCHPORT_DEVICE`, `TORCHPORT_THREADS`, `TORCHPORT_PRECISION`, `TORCHPORT_TENSORRT` and
`TORCHPORT_SHADOW` (`torchscript=0.1`, or `off`) override the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torchport_runtime.cores import available_cores
from torchport_runtime.errors import BackendError
from torchport_runtime.shadow_options import ShadowOptions
from torchport_runtime.suggest import did_you_mean

ARTIFACT_SUFFIX = {"onnxruntime": ".onnx", "torchscript": ".pt", "pt2": ".pt2", "aotinductor": ".aoti.pt2"}
"""The backends, each with the suffix of the float32 artifacts that it runs."""

DEFAULT_BACKENDS = ("onnxruntime", "torchscript", "pt2")
"""Backends that are exported unless a recipe says otherwise. AOTInductor is not among them, because it
compiles for one kind of machine."""

HALF_PRECISIONS = ("float16", "bfloat16")

BACKEND_PRECISIONS = {
    # ONNX Runtime has next to no kernels for bfloat16, and none for its convolutions on the CPU.
    "onnxruntime": ("float32", "float16", "int8"),
    "torchscript": ("float32", *HALF_PRECISIONS),
    "pt2": ("float32", *HALF_PRECISIONS),
    "aotinductor": ("float32", *HALF_PRECISIONS),
}
"""The precisions that each backend supports."""

PRECISIONS = ("float32", *HALF_PRECISIONS, "int8")

INT8_SUFFIX = ".int8.onnx"
"""Suffix of artifacts that `torchport quantize` made; ONNX Runtime runs them."""

_PRECISION_NEEDS = {
    "int8": "only onnxruntime has it",
    "bfloat16": "ONNX Runtime has not the kernels for it; torchscript, pt2 and aotinductor do",
}

OVERRIDABLE = ("backend", "device", "threads", "precision", "tensorrt", "shadow")
"""Options that an environment variable, such as TORCHPORT_BACKEND, overrides."""

MOST_THREADS = 1024
"""Maximum number of threads. More is refused as a mistake, which would take long to fail."""

GRAPH_OPTIMIZATION = ("disable", "basic", "extended", "all")


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """Options of one served model.

    Raises:
        BackendError: a value is not one of those above, or does not go with the others.
    """

    backend: str = "onnxruntime"
    device: str = "auto"
    threads: int = 0
    tf32: bool = False
    graph_optimization: str = "all"
    precision: str = "float32"
    tensorrt: bool = False
    io_binding: bool | None = None
    shadow: ShadowOptions | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shadow", ShadowOptions.read(self.shadow))
        self._of_shadow()
        if not isinstance(self.backend, str) or self.backend not in ARTIFACT_SUFFIX:
            raise BackendError(
                f"backend {self.backend!r}: {did_you_mean(str(self.backend), ARTIFACT_SUFFIX)}"
            )
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(self.device)):
            raise BackendError(f"device {self.device!r}: auto, cpu, cuda or cuda:N is expected")
        number = isinstance(self.threads, int) and not isinstance(self.threads, bool)
        if not number or not 0 <= self.threads <= MOST_THREADS:
            raise BackendError(
                f"threads {self.threads!r}: a whole number up to {MOST_THREADS}, 0 for every core"
            )
        for key in ("tf32", "tensorrt"):
            if not isinstance(getattr(self, key), bool):
                raise BackendError(f"{key} {getattr(self, key)!r}: true or false is expected")
        if self.io_binding not in (None, True, False):
            raise BackendError(f"io_binding {self.io_binding!r}: true or false is expected")
        if self.graph_optimization not in GRAPH_OPTIMIZATION:
            raise BackendError(
                f"graph_optimization {self.graph_optimization!r}: "
                f"{did_you_mean(str(self.graph_optimization), GRAPH_OPTIMIZATION)}"
            )
        if self.precision not in PRECISIONS:
            raise BackendError(
                f"precision {self.precision!r}: {did_you_mean(str(self.precision), PRECISIONS)}"
            )
        if self.precision not in BACKEND_PRECISIONS[self.backend]:
            raise BackendError(
                f"precision {self.precision!r} with backend {self.backend!r}: "
                f"{_PRECISION_NEEDS[self.precision]}; ask for another backend (TORCHPORT_BACKEND), or for "
                "precision float32 (TORCHPORT_PRECISION=float32)"
            )
        if self.precision == "int8" and self.device.startswith("cuda"):
            raise BackendError(
                f"precision 'int8' with device {self.device!r}: these graphs are made for the CPU and proven "
                "there; ask for device cpu or auto, or for precision float32"
            )
        if self.tensorrt and (self.backend != "onnxruntime" or not self.device.startswith("cuda")):
            raise BackendError(
                f"tensorrt: true with backend {self.backend!r} on device {self.device!r}: it is ONNX "
                "Runtime's, on a GPU: ask for backend onnxruntime and device cuda, or for tensorrt: false "
                "(TORCHPORT_TENSORRT=false)"
            )
        if self.tensorrt and self.precision == "int8":
            raise BackendError("tensorrt: true with precision 'int8': those graphs are made for the CPU")
        if self.io_binding and self.backend != "onnxruntime":
            raise BackendError(f"io_binding: true with backend {self.backend!r}: only onnxruntime has it")

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], environ: Mapping[str, str] | None = None
    ) -> BackendOptions:
        """Read the `torchport:` block, with the overrides of `environ`.

        Raises:
            BackendError: a value or a key is unknown.
        """
        if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
            raise BackendError(f"model-config.yaml: torchport: {config!r}, expected names and values")
        known = {f.name for f in fields(cls)}
        given = {key: value for key, value in config.items() if key != "handler"}
        for key in given:
            if key not in known:
                raise BackendError(
                    f"model-config.yaml: torchport.{key} is not known, {did_you_mean(key, known)}"
                )
        environ = environ or {}
        for key in OVERRIDABLE:
            value = environ.get(f"TORCHPORT_{key.upper()}")
            if value:
                given[key] = value
        if given.get("backend", "onnxruntime") != config.get("backend", "onnxruntime"):
            given.pop("io_binding", None)  # The file says it of its own backend.
        if isinstance(given.get("tensorrt"), str):
            if given["tensorrt"].lower() not in ("true", "false"):
                raise BackendError(f"TORCHPORT_TENSORRT={given['tensorrt']!r}: true or false is expected")
            given["tensorrt"] = given["tensorrt"].lower() == "true"
        if isinstance(given.get("threads"), str):
            if not given["threads"].isdigit():
                raise BackendError(f"TORCHPORT_THREADS={given['threads']!r}: a whole number")
            given["threads"] = int(given["threads"])
        return cls(**given)

    @property
    def thread_count(self) -> int:
        """Number of threads of one inference; all available cores by default."""
        return self.threads or available_cores()

    @property
    def takes_gpu(self) -> bool:
        """Whether the options allow a GPU: neither INT8 nor AOTInductor."""
        return self.precision != "int8" and self.backend != "aotinductor"

    @property
    def shadowed(self) -> BackendOptions | None:
        """Options of the shadow's backend; None without a different one."""
        options = self._of_shadow()
        if options is None or (options.backend, options.precision, options.device) == (
            self.backend,
            self.precision,
            "cpu" if self.device == "auto" else self.device,
        ):
            return None
        return options

    def _of_shadow(self) -> BackendOptions | None:
        if self.shadow is None:
            return None
        shadow = self.shadow
        try:
            return BackendOptions(
                backend=shadow.backend,
                precision=shadow.precision,
                device=shadow.device,
                threads=shadow.threads,
                tf32=self.tf32,
                graph_optimization=self.graph_optimization,
            )
        except BackendError as err:
            raise BackendError(f"shadow: {err}") from err

    @property
    def artifact_suffix(self) -> str:
        """Suffix of the artifacts that are run."""
        return artifact_suffix(self.backend, self.precision)

    def numerics(self) -> dict[str, Any]:
        """Options that can change a result; a certificate is bound to them."""
        own: dict[str, Any] = {"tf32": self.tf32}
        if self.backend == "onnxruntime":
            own["graph_optimization"] = self.graph_optimization
        if self.precision != "float32":
            own["precision"] = self.precision
        if self.tensorrt:
            own["tensorrt"] = True
        return own

    def to_json(self) -> dict[str, Any]:
        """The options as a `torchport:` block.

        Older runtimes read it too, which do not know precisions, TensorRT, IO binding or shadows. So these
        keys are left out if they have their default.
        """
        later = {"precision": "float32", "tensorrt": False, "io_binding": None, "shadow": None}
        said = {k: v for k, v in asdict(self).items() if k not in later or v != later[k]}
        return said | ({} if self.shadow is None else {"shadow": self.shadow.to_json()})


def artifact_suffix(backend: str, precision: str) -> str:
    """Suffix of a graph's artifact: `.onnx`, `.int8.onnx`, `.bfloat16.pt2`."""
    return ARTIFACT_SUFFIX[backend] if precision == "float32" else f".{precision}{ARTIFACT_SUFFIX[backend]}"
