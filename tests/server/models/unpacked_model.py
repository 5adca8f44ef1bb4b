"""A model that needs no archive, for tests whose workers are imagined or never start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchport.server.models.unpacked import UnpackedModel


def unpacked_model(**changes: Any) -> UnpackedModel:
    """A model called `model`, with these changes."""
    usual: dict[str, Any] = {
        "name": "model",
        "version": "1.0",
        "url": "model-1.0.mar",
        "folder": Path("model"),
        "handler": "handler.py",
        "envelope": "",
        "runtime": "python",
        "config": {},
        "thread_count": 1,
        "certified": False,
    }
    return UnpackedModel(**usual | changes)
