"""The folders of recipes, handlers and configuration that torchport brings."""

from __future__ import annotations

from pathlib import Path

_IN_CHECKOUT = {"recipes": "export"}


def packaged_folder(name: str) -> Path:
    """The folder of what torchport brings: "recipes", "handlers" or "deploy".

    Inside the package where it is installed; at the top of the tree in a checkout.
    """
    package = Path(__file__).parents[1]
    installed = package / name
    return installed if installed.is_dir() else package.parent / _IN_CHECKOUT.get(name, name)
