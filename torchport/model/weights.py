"""Loads a file of weights into a model, without running its code.

load_weights(model, Path("mobilenet_v2.safetensors"))

Files are `.pt` and `.pth` (a state_dict) and `.safetensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchport.errors import TrainingError

if TYPE_CHECKING:
    import torch
    from torch import nn

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_DATA_PARALLEL = "module."


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state_dict into `model`.

    A checkpoint may hold it under "state_dict", "model_state_dict" or "model". If all names begin with
    "module.", as DataParallel writes them, that prefix is removed.

    Raises:
        TrainingError: truncated, not a state_dict, keys or shapes that do not fit, NaN or Inf.
    """
    import torch

    state = _unwrapped(_read(path))
    plain = isinstance(state, dict) and all(
        isinstance(k, str) and torch.is_tensor(v) and v.layout == torch.strided and not v.is_meta
        for k, v in state.items()
    )
    if not plain:
        raise TrainingError(f"{path}: holds no state_dict: names to plain tensors are expected")
    own_names = model.state_dict()
    if state and all(k.startswith(_DATA_PARALLEL) for k in state) and not set(state) & set(own_names):
        state = {k.removeprefix(_DATA_PARALLEL): v for k, v in state.items()}
    for name, own in own_names.items():
        if name in state and _kind(state[name]) != _kind(own):
            raise TrainingError(f"{path} does not fit {type(model).__name__}: {name} is {state[name].dtype}")
    refuse_nonfinite(state, str(path))
    try:
        model.load_state_dict(state)
    except RuntimeError as err:
        detail = " ".join(f"{line.strip()[:300]}" for line in str(err).splitlines()[1:4])
        raise TrainingError(f"{path} does not fit {type(model).__name__}: {detail}") from err


def refuse_nonfinite(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse a state_dict with NaN or Inf in a tensor."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise TrainingError(
                f"{source}: {name} holds NaN or Inf: lower the learning rate, look at the data, "
                "or take another checkpoint"
            )


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        except ImportError as err:
            raise TrainingError(f"{path} needs safetensors: pip install safetensors") from err
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as err:
            raise TrainingError(f"{path}: not a readable safetensors file: {err}") from err
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # torch.load ends a damaged file as RuntimeError, EOFError, KeyError and more.
        raise TrainingError(
            f"{path}: not a readable state_dict (truncated, or more than tensors in it): "
            "save it with torch.save(model.state_dict(), path)"
        ) from err


def _kind(tensor: torch.Tensor) -> tuple[bool, bool]:
    """Whether a tensor is complex, and whether it is floating.

    Whole numbers in place of a float parameter are a quantised checkpoint, not weights.
    """
    return tensor.is_complex(), tensor.is_floating_point()


def _unwrapped(state: Any) -> Any:
    """The state_dict in a checkpoint, if exactly one has a usual name.

    Anything else is returned as it is.

    Raises:
        TrainingError: several have, or tensors stand next to it.
    """
    if not isinstance(state, dict):
        return state
    inside = [name for name in _WRAPPERS if isinstance(state.get(name), dict)]
    if len(inside) > 1:
        raise TrainingError(f"the checkpoint holds {' and '.join(inside)}: save the one that is meant")
    if inside and any(hasattr(value, "shape") for value in state.values()):
        raise TrainingError(f"the checkpoint holds tensors beside {inside[0]!r}: save the state_dict alone")
    return state[inside[0]] if inside else state
