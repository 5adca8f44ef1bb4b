"""Integrated gradients: how much each input value contributes to an answer.

    attributions, delta = integrated_gradients(
        self.backends["main"], tensors, name="image", output="logits", target=7
    )

By Captum, on a backend that has gradients (TorchScript). Sundararajan, Taly and Yan, "Axiomatic
Attribution for Deep Networks", 2017.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from torchport_runtime.backends.backend import Backend, TorchScriptBackend
from torchport_runtime.errors import BackendError, BadRequest

MIN_SIDE = 256
"""Approximate minimum of a heat map's longer side in pixels. Smaller maps are enlarged."""


def integrated_gradients(
    backend: Backend,
    inputs: Mapping[str, np.ndarray],
    *,
    name: str,
    output: str,
    target: int,
    steps: int = 50,
) -> tuple[np.ndarray, float]:
    """Attributions of one row's input `name` for the index `target` of `output` [1, classes].

    The baseline is zeros (for a normalised image: the mean colour). Returns float32 of the input's shape,
    and the convergence delta: the attributions' sum against the output's change.

    Raises:
        BadRequest: the backend has no gradients; the message names one that has.
        BackendError: Captum is not installed.
    """
    backend = getattr(backend, "unwatched", backend)
    if not isinstance(backend, TorchScriptBackend):
        raise BadRequest(
            "explanations need gradients, which this model's backend does not give: whoever runs the server "
            "can serve the model with backend torchscript (TORCHPORT_BACKEND=torchscript)"
        )
    try:
        from captum.attr import IntegratedGradients
    except ImportError as err:
        raise BackendError("explanations need Captum: pip install captum") from err
    import torch

    tensors = {key: torch.from_numpy(np.ascontiguousarray(a)).to(backend.device) for key, a in inputs.items()}

    def forward(varied: torch.Tensor) -> torch.Tensor:
        rows = len(varied)
        others = {
            key: varied if key == name else tensor.expand(rows, *tensor.shape[1:])
            for key, tensor in tensors.items()
        }
        scores: torch.Tensor = backend.differentiable(others)[output]
        return scores

    # cuDNN's recurrent layers have gradients in training mode only; torch's own have them always.
    with torch.backends.cudnn.flags(enabled=False):
        attributions, delta = IntegratedGradients(forward).attribute(
            tensors[name],
            baselines=torch.zeros_like(tensors[name]),
            target=target,
            n_steps=steps,
            internal_batch_size=16,
            return_convergence_delta=True,
        )
    return attributions.detach().cpu().numpy().astype(np.float32), float(delta.abs().max())


def heat_map(attributions: np.ndarray) -> bytes:
    """A PNG of attributions [height, width].

    Red values spoke for the answer, blue ones against it, white ones neither. Each becomes a square of
    pixels, so that small maps can be seen.
    """
    scale = max(1, MIN_SIDE // max(attributions.shape))
    strength = attributions / max(float(np.abs(attributions).max()), 1e-12)
    fade = 1 - np.abs(strength)
    red, blue = np.where(strength < 0, fade, 1.0), np.where(strength > 0, fade, 1.0)
    pixels = np.rint(np.stack([red, fade, blue], axis=-1) * 255).astype(np.uint8)
    height, width = attributions.shape
    picture = Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
