"""Folders of torchport's own recipes, handlers and configuration."""

from __future__ import annotations

from pathlib import Path

_IN_CHECKOUT = {"recipes": "export"}


def packaged_folder(name: str) -> Path:
    """A folder of torchport's own files: "recipes", "handlers" or "deploy".

    It is inside the package if installed, and at the top of the tree in a checkout.
    """
    package = Path(__file__).parents[1]
    installed = package / name
    return installed if installed.is_dir() else package.parent / _IN_CHECKOUT.get(name, name)
