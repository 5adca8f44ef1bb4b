"""Runs graphs by PyTorch: TorchScript's `.pt` files and torch.export's `.pt2`.

    backend = Pt2Backend(Path("main.pt2"), signature, BackendOptions(backend="pt2", device="cpu"))
    backend.run({"x": np.array([[4.0]], np.float32)})     # {"y": array([[14.17]], dtype=float32)}

torch is imported when a graph is opened.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from torchport_runtime.backends.cuda import device_index, refuse_cuda
from torchport_runtime.errors import BackendError, one_line
from torchport_runtime.options import BackendOptions
from torchport_runtime.signature import Signature

Tensors = Mapping[str, np.ndarray]


class TorchBackend:
    """Base class for callable programs of TorchScript, torch.export and AOTInductor."""

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
        with warnings.catch_warnings():
            # torch 2.9 advises newer settings. Once they are used, every read of these two raises an error.
            warnings.filterwarnings("ignore", "Please use the new API settings", UserWarning)
            torch.backends.cuda.matmul.allow_tf32 = options.tf32
            torch.backends.cudnn.allow_tf32 = options.tf32
        try:
            self._program = self._load(path)
        except BackendError:
            raise
        except Exception as err:  # Damaged files end as RuntimeError, KeyError, zipfile's and pickle's own.
            raise BackendError(f"{path.name}: torch cannot load it: {one_line(err)}") from err

    def _choose_device(self, options: BackendOptions) -> str:
        if options.device == "cpu":
            return "cpu"
        index = device_index(options.device)
        if not self._torch.cuda.is_available():
            refuse_cuda(options, "torch sees no CUDA device here")
            return "cpu"
        if index >= self._torch.cuda.device_count():
            refuse_cuda(options, f"torch sees {self._torch.cuda.device_count()} CUDA device(s)")
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
            raise BackendError(f"{type(self).__name__} failed: {one_line(err)}") from err


class TorchScriptBackend(TorchBackend):
    """Runs a `.pt` file by TorchScript."""

    def _load(self, path: Path) -> Any:
        with warnings.catch_warnings():
            # torch advises torch.export instead; who serves TorchScript chose it.
            warnings.simplefilter("ignore")
            return self._torch.jit.load(str(path), map_location=self.device).eval()

    def differentiable(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs for torch tensors on this device, with gradients."""
        with self._torch.enable_grad():
            arguments = [inputs[name] for name in self._signature.inputs]
            return named_outputs(self._program(*arguments), list(self._signature.outputs))


class Pt2Backend(TorchBackend):
    """Runs a `.pt2` file, a torch.export program, by torch."""

    def _load(self, path: Path) -> Any:
        quiet = logging.getLogger("torch")
        before = quiet.level
        quiet.setLevel(logging.ERROR)  # It warns of symbols of loops, which are as they were written.
        try:
            with warnings.catch_warnings():
                # torch 2.9 says so of the bytes behind the weights; inference never writes to them.
                warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
                program = self._torch.export.load(str(path))
        finally:
            quiet.setLevel(before)
        if self.device != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, self.device)
        return program.module()


def named_outputs(value: Any, names: list[str]) -> dict[str, Any]:
    """A model's return value by the signature's names of outputs.

    The value is a tensor, or a tuple, list or dict of tensors.

    Raises:
        BackendError: the number of outputs or their names are wrong.
    """
    if isinstance(value, Mapping):
        if set(value) != set(names):
            raise BackendError(f"the model returns {sorted(value)}, the signature has {sorted(names)}")
        return {name: value[name] for name in names}
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    if len(values) != len(names):
        raise BackendError(f"the model returns {len(values)} outputs, the signature has {names}")
    return dict(zip(names, values, strict=True))
