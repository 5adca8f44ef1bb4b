"""What runs an exported graph. Every backend takes and gives numpy arrays by name.

    backend = open_backend(Path("main.onnx"), signature, BackendOptions(device="cpu"))
    backend.run({"x": np.array([[4.0]], np.float32)})     # {"y": array([[14.17]], dtype=float32)}

The ONNX Runtime backend never imports torch; torch is imported by the two that need it.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from torchport_runtime.errors import BackendError
from torchport_runtime.options import BackendOptions
from torchport_runtime.signature import Signature

logger = logging.getLogger(__name__)

Tensors = Mapping[str, np.ndarray]


class Backend(Protocol):
    """A loaded graph. `device` is the one really used: "cpu" or "cuda:N"."""

    device: str
    provider: str

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Compute the outputs, by the signature's names.

        Raises:
            BackendError: the graph failed on these inputs.
        """
        ...


def open_backend(path: Path, signature: Signature, options: BackendOptions) -> Backend:
    """Load the artifact at `path` with the backend that `options` names.

    Raises:
        BackendError: the file is damaged, the library is missing, or the device cannot be had.
    """
    if not path.is_file() and options.precision == "int8":
        raise BackendError(
            f"precision 'int8' needs {path.name}, which is not there: torchport quantize makes it, and "
            "torchport package then puts it into the archive; or ask for precision float32"
        )
    if not path.is_file():
        raise BackendError(
            f"backend {options.backend!r} needs {path.name}, which is not there: export it, or "
            "package the archive with it"
        )
    if options.backend == "onnxruntime":
        return OnnxRuntimeBackend(path, signature, options)
    if options.backend == "torchscript":
        return TorchScriptBackend(path, signature, options)
    return Pt2Backend(path, signature, options)


@cache
def cuda_device_count() -> int:
    """Number of CUDA devices that the driver knows; 0 without a driver. Loads no CUDA library."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
        count = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
        return count.value
    except (OSError, AttributeError):
        return 0


def _cuda_index(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def _refuse_cuda(options: BackendOptions, reason: str) -> None:
    """Raise if CUDA was asked for by name; with `auto`, say why it is the CPU and go on."""
    if options.device != "auto":
        raise BackendError(
            f"device {options.device!r} was asked for, but {reason}: ask for cpu or auto, or mend that"
        )
    logger.info("running on the CPU: %s", reason)


class OnnxRuntimeBackend:
    """A `.onnx` file by ONNX Runtime, on the CPU or the CUDA execution provider."""

    def __init__(self, path: Path, signature: Signature, options: BackendOptions) -> None:
        try:
            import onnxruntime
        except ImportError as err:
            raise BackendError("backend 'onnxruntime' needs ONNX Runtime: pip install onnxruntime") from err
        self._ort = onnxruntime
        self._outputs = list(signature.outputs)
        self._session = self._open(path, options)
        self.provider = self._session.get_providers()[0]
        on_cuda = self.provider == "CUDAExecutionProvider"
        self.device = f"cuda:{_cuda_index(options.device)}" if on_cuda else "cpu"
        for role, specs, nodes in (
            ("inputs", signature.inputs, self._session.get_inputs()),
            ("outputs", signature.outputs, self._session.get_outputs()),
        ):
            names = [node.name for node in nodes]
            if names != list(specs):
                raise BackendError(f"{path.name}: {role} are {names}, the signature has {list(specs)}")

    def _open(self, path: Path, options: BackendOptions) -> Any:
        if options.device != "cpu" and options.precision == "float32":
            reason = self._why_no_cuda(options)
            if reason is None:
                session = self._session_on(path, options, cuda=True)
                if session.get_providers()[0] == "CUDAExecutionProvider":
                    return session
                reason = (
                    "ONNX Runtime's CUDA provider did not start (are the CUDA 13 libraries there? "
                    "pip install 'torchport[gpu]')"
                )
            _refuse_cuda(options, reason)
        return self._session_on(path, options, cuda=False)

    def _why_no_cuda(self, options: BackendOptions) -> str | None:
        if "CUDAExecutionProvider" not in self._ort.get_available_providers():
            return "this ONNX Runtime has no CUDA provider (pip install onnxruntime-gpu)"
        count = cuda_device_count()
        if count == 0:
            return "this machine has no CUDA device or no NVIDIA driver"
        if _cuda_index(options.device) >= count:
            return f"this machine has {count} CUDA device(s), numbered from 0"
        return None

    def _session_on(self, path: Path, options: BackendOptions, *, cuda: bool) -> Any:
        ort = self._ort
        session_options = ort.SessionOptions()
        session_options.intra_op_num_threads = options.thread_count
        session_options.inter_op_num_threads = 1
        session_options.graph_optimization_level = {
            "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
            "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
            "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
            "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        }[options.graph_optimization]
        session_options.log_severity_level = 4 if cuda else 3
        providers: list[Any] = ["CPUExecutionProvider"]
        if cuda:
            if hasattr(ort, "preload_dlls"):
                # From the nvidia-* packages, so that CUDA works with no torch in the process.
                ort.preload_dlls(directory="")
            providers.insert(0, ("CUDAExecutionProvider", cuda_provider_options(options)))
        try:
            return ort.InferenceSession(str(path), session_options, providers=providers)
        except Exception as err:  # ONNX Runtime's own exceptions share no base class but this.
            raise BackendError(f"{path.name}: ONNX Runtime cannot load it: {_one_line(err)}") from err

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        try:
            values = self._session.run(self._outputs, dict(inputs))
        except Exception as err:  # As above: no common base class.
            raise BackendError(f"ONNX Runtime failed: {_one_line(err)}") from err
        return dict(zip(self._outputs, values, strict=True))


def cuda_provider_options(options: BackendOptions) -> dict[str, str]:
    """Options of ONNX Runtime's CUDA provider; TF32 is off unless asked for, as parity needs."""
    return {"device_id": str(_cuda_index(options.device)), "use_tf32": str(int(options.tf32))}


class _TorchBackend:
    """What TorchScript and torch.export programs share once they are loaded and callable."""

    def __init__(self, path: Path, signature: Signature, options: BackendOptions) -> None:
        try:
            import torch
        except ImportError as err:
            raise BackendError(f"backend {options.backend!r} needs PyTorch: pip install torch") from err
        self._torch = torch
        self._signature = signature
        self.device = self._choose_device(options)
        self.provider = f"torch {self.device}"
        torch.set_num_threads(options.thread_count)
        torch.backends.cuda.matmul.allow_tf32 = options.tf32
        torch.backends.cudnn.allow_tf32 = options.tf32
        try:
            self._program = self._load(path)
        except Exception as err:  # Damaged files end as RuntimeError, KeyError, zipfile's and pickle's own.
            raise BackendError(f"{path.name}: torch cannot load it: {_one_line(err)}") from err

    def _choose_device(self, options: BackendOptions) -> str:
        if options.device == "cpu":
            return "cpu"
        index = _cuda_index(options.device)
        if not self._torch.cuda.is_available():
            _refuse_cuda(options, "torch sees no CUDA device here")
            return "cpu"
        if index >= self._torch.cuda.device_count():
            _refuse_cuda(options, f"torch sees {self._torch.cuda.device_count()} CUDA device(s)")
            return "cpu"
        return f"cuda:{index}"

    def _load(self, path: Path) -> Any:
        raise NotImplementedError

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        torch = self._torch
        try:
            with torch.inference_mode():
                arguments = [
                    torch.from_numpy(np.require(inputs[name], requirements=["C", "W"])).to(self.device)
                    for name in self._signature.inputs
                ]
                values = named_outputs(self._program(*arguments), list(self._signature.outputs))
                return {name: value.cpu().numpy() for name, value in values.items()}
        except MemoryError:
            raise
        except Exception as err:  # Operators raise RuntimeError, IndexError, ValueError, NotImplementedError.
            raise BackendError(f"{type(self).__name__} failed: {_one_line(err)}") from err


class TorchScriptBackend(_TorchBackend):
    """A `.pt` file by TorchScript."""

    def _load(self, path: Path) -> Any:
        with warnings.catch_warnings():
            # torch advises torch.export instead; who serves TorchScript chose it.
            warnings.simplefilter("ignore")
            return self._torch.jit.load(str(path), map_location=self.device).eval()

    def differentiable(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs of torch tensors on this device, through which gradients can be taken."""
        with self._torch.enable_grad():
            arguments = [inputs[name] for name in self._signature.inputs]
            return named_outputs(self._program(*arguments), list(self._signature.outputs))


class Pt2Backend(_TorchBackend):
    """A `.pt2` file, a torch.export program run by torch."""

    def _load(self, path: Path) -> Any:
        quiet = logging.getLogger("torch")
        before = quiet.level
        quiet.setLevel(logging.ERROR)  # It warns of symbols of loops, which are as they were written.
        try:
            program = self._torch.export.load(str(path))
        finally:
            quiet.setLevel(before)
        if self.device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, self.device)
        return program.module()


def named_outputs(value: Any, names: list[str]) -> dict[str, Any]:
    """A model's return value (tensor, tuple, list or dict of tensors) by the signature's names.

    Raises:
        BackendError: another number of outputs, or other names.
    """
    if isinstance(value, Mapping):
        if set(value) != set(names):
            raise BackendError(f"the model returns {sorted(value)}, the signature has {sorted(names)}")
        return {name: value[name] for name in names}
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    if len(values) != len(names):
        raise BackendError(f"the model returns {len(values)} outputs, the signature has {names}")
    return dict(zip(names, values, strict=True))


def _one_line(err: BaseException) -> str:
    """An error's message without the C++ stack that follows it, at most 400 characters."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return (" ".join(lines[:3]) or type(err).__name__)[:400]
