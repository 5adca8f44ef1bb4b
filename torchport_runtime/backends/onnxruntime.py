"""Runs `.onnx` graphs by ONNX Runtime, on CPU, CUDA or TensorRT. Never imports torch.

backend = OnnxRuntimeBackend(Path("main.onnx"), signature, BackendOptions(device="cpu"))
backend.provider                     # "CPUExecutionProvider"
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchport_runtime.backends import cuda, tensorrt
from torchport_runtime.backends.cuda import device_index
from torchport_runtime.errors import BackendError, one_line
from torchport_runtime.options import BackendOptions
from torchport_runtime.signature import Signature

Tensors = Mapping[str, np.ndarray]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class OnnxRuntimeBackend:
    """Runs a `.onnx` file by ONNX Runtime's CPU, CUDA or TensorRT provider."""

    def __init__(self, path: Path, signature: Signature, options: BackendOptions) -> None:
        try:
            import onnxruntime
        except ImportError as err:
            raise BackendError("backend 'onnxruntime' needs ONNX Runtime: pip install onnxruntime") from err
        self._ort = onnxruntime
        self._inputs, self._outputs = list(signature.inputs), list(signature.outputs)
        self._session = self._open(path, signature, options)
        self.provider = self._session.get_providers()[0]
        self._index = device_index(options.device)
        self.device = "cpu" if self.provider == CPU else f"cuda:{self._index}"
        bound = options.io_binding if options.io_binding is not None else self.device != "cpu"
        self._compute = self._run_bound if bound else self._run_plain
        for role, specs, nodes in (
            ("inputs", signature.inputs, self._session.get_inputs()),
            ("outputs", signature.outputs, self._session.get_outputs()),
        ):
            names = [node.name for node in nodes]
            if names != list(specs):
                raise BackendError(f"{path.name}: {role} are {names}, the signature has {list(specs)}")

    def _open(self, path: Path, signature: Signature, options: BackendOptions) -> Any:
        if options.device != "cpu" and options.precision != "int8":
            reason = self._why_no_cuda(options)
            if reason is None and options.tensorrt:
                session = self._session_on(path, options, self._tensorrt_providers(path, signature, options))
                reason = tensorrt.why_unused(session)
                if reason is None:
                    return session
            elif reason is None:
                session = self._session_on(path, options, [(CUDA, cuda_provider_options(options)), CPU])
                if session.get_providers()[0] == CUDA:
                    return session
                reason = (
                    "ONNX Runtime's CUDA provider did not start (are the CUDA 13 libraries there? "
                    "pip install 'torchport[gpu]')"
                )
            if options.tensorrt:
                raise BackendError(
                    f"tensorrt: true was asked for, but {reason}: ask for tensorrt: false "
                    "(TORCHPORT_TENSORRT=false), or mend that"
                )
            cuda.refuse_cuda(options, reason)
        return self._session_on(path, options, [CPU])

    def _tensorrt_providers(self, path: Path, signature: Signature, options: BackendOptions) -> list[Any]:
        if not options.tf32:
            # TensorRT takes TF32 where it can, and ONNX Runtime has no option against it.
            os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
        if importlib.util.find_spec("tensorrt") is not None:
            importlib.import_module("tensorrt")  # It loads its libraries, which lie on no path.
        own = tensorrt.provider_options(path, signature, options, self._ort.__version__)
        return [(tensorrt.PROVIDER, own), (CUDA, cuda_provider_options(options)), CPU]

    def _why_no_cuda(self, options: BackendOptions) -> str | None:
        wanted = tensorrt.PROVIDER if options.tensorrt else CUDA
        if wanted not in self._ort.get_available_providers():
            name = "TensorRT" if options.tensorrt else "CUDA"
            return f"this ONNX Runtime has no {name} provider (pip install onnxruntime-gpu)"
        count = cuda.cuda_device_count()
        if count == 0:
            return "this machine has no CUDA device or no NVIDIA driver"
        if device_index(options.device) >= count:
            return f"this machine has {count} CUDA device(s), numbered from 0"
        return None

    def _session_on(self, path: Path, options: BackendOptions, providers: list[Any]) -> Any:
        on_cuda = len(providers) > 1
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
        session_options.log_severity_level = 4 if on_cuda else 3
        if options.tensorrt:
            # So that what TensorRT has really taken can be asked.
            session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if on_cuda and hasattr(ort, "preload_dlls"):
            # From the nvidia-* packages, so that CUDA works with no torch in the process.
            ort.preload_dlls(directory="")
        try:
            return ort.InferenceSession(str(path), session_options, providers=providers)
        except Exception as err:  # ONNX Runtime's own exceptions share no base class but this.
            raise BackendError(f"{path.name}: ONNX Runtime cannot load it: {one_line(err)}") from err

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        try:
            values = self._compute(inputs)
        except Exception as err:  # As above: no common base class.
            raise BackendError(f"ONNX Runtime failed: {one_line(err)}") from err
        return dict(zip(self._outputs, values, strict=True))

    def _run_plain(self, inputs: Tensors) -> Sequence[np.ndarray]:
        values: Sequence[np.ndarray] = self._session.run(self._outputs, dict(inputs))
        return values

    def _run_bound(self, inputs: Tensors) -> Sequence[np.ndarray]:
        """Run with outputs allocated on the device, and copy them back once.

        Each run makes a new binding, because sizes change between runs, and earlier answers must not be
        views of memory that the next run writes to.
        """
        binding = self._session.io_binding()
        # Held until the run has ended: a binding of the CPU points into them. Of views it knows no strides.
        arrays = {name: np.require(inputs[name], requirements="C") for name in self._inputs}
        for name, array in arrays.items():
            binding.bind_cpu_input(name, array)
        device, _, _ = self.device.partition(":")
        for name in self._outputs:
            binding.bind_output(name, device, self._index if device != "cpu" else 0)
        self._session.run_with_iobinding(binding)
        values: Sequence[np.ndarray] = binding.copy_outputs_to_cpu()
        return values


def cuda_provider_options(options: BackendOptions) -> dict[str, str]:
    """Options of ONNX Runtime's CUDA provider.

    TF32 is off unless asked for, as parity needs.
    """
    return {"device_id": str(device_index(options.device)), "use_tf32": str(int(options.tf32))}
