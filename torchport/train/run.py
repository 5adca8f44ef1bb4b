"""The argument `run` of a recipe's `train`: device, seed, progress, checkpoints, assets.

def train(self, model, run):
    start = run.restore(model=model, optimizer=optimizer)
    for epoch in run.progress(range(start, EPOCHS)):
        ...
        run.checkpoint(epoch + 1, model=model, optimizer=optimizer)
"""

from __future__ import annotations

import hashlib
import io
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from torchport.store.files import write_bytes

T = TypeVar("T")
Progress = Callable[[Iterable[T], str, int | None], Iterable[T]]


def no_progress(items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
    """Progress display that shows nothing."""
    return items


@dataclass
class Run:
    """The argument `run` of a recipe's `train`.

    Attributes:
        device: "cuda" if available, else "cpu".
        seed: torch, numpy and random are seeded with it already.
        cache: a folder for data sets, kept between runs.
        assets: a folder whose files are packaged in the archive and passed to the handler.
    """

    device: str
    seed: int
    cache: Path
    assets: Path
    checkpoint_path: Path
    checkpoint_key: str
    show: Progress[Any] = no_progress
    checkpoint_every_s: float = 5.0
    data_sha256: str | None = None
    _last_checkpoint: float = field(default_factory=time.monotonic)

    def progress(
        self, items: Iterable[T], description: str = "training", total: int | None = None
    ) -> Iterator[T]:
        """Iterate over `items`, with a progress bar on a terminal."""
        yield from self.show(items, description, total)

    def fingerprint(self, *arrays: np.ndarray) -> None:
        """Record the SHA-256 of the training data, for `training.json`."""
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        self.data_sha256 = digest.hexdigest()

    def checkpoint(self, step: int, *, force: bool = False, **parts: Any) -> None:
        """Save a checkpoint, with which a killed training continues after `step`.

        It has the `state_dict()` of each of `parts` and every random generator's state. It is written
        at most every `checkpoint_every_s` seconds, unless `force`.
        """
        import torch

        now = time.monotonic()
        if not force and now - self._last_checkpoint < self.checkpoint_every_s:
            return
        state = {
            "key": self.checkpoint_key,
            "step": step,
            "parts": {name: part.state_dict() for name, part in parts.items()},
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": _numpy_state(),
            "python": list(random.getstate()[1]),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(self.checkpoint_path, buffer.getvalue())
        self._last_checkpoint = now

    def restore(self, **parts: Any) -> int:
        """Load a checkpoint of this very training into `parts`.

        Returns its step; 0 without a checkpoint. A checkpoint of another seed or of a recipe since
        changed, or a damaged one, is left alone.
        """
        import torch

        if not self.checkpoint_path.is_file():
            return 0
        try:
            state = torch.load(self.checkpoint_path, map_location="cpu", weights_only=True)
        except Exception:  # torch.load ends a damaged file in many ways; training afresh is right for all.
            return 0
        if state.get("key") != self.checkpoint_key or set(state["parts"]) != set(parts):
            return 0
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
        keys, position, has_gauss, gauss = state["numpy"]
        np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
        version, _, gauss_next = random.getstate()
        random.setstate((version, tuple(state["python"]), gauss_next))
        return int(state["step"])


def _numpy_state() -> list[Any]:
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return [np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)]
