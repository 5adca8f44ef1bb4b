"""Finds installed modules as a Python process without PYTHONPATH would.

    installed_file("numpy")              # Path(".../site-packages/numpy/__init__.py")
    installed_file("my_recipe")          # None

The current folder does not count either. In addition to site-packages, it knows what `.pth` files there
add: folders or, as editable installs do, finders.
"""

from __future__ import annotations

import site
import sys
import sysconfig
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from pathlib import Path

_OF_PYTHON = (BuiltinImporter, FrozenImporter, PathFinder)


def installed_file(name: str) -> Path | None:
    """The file of a top-level module or package.

    None if it is not installed, or is a folder without `__init__.py`.
    """
    found = PathFinder.find_spec(name, installed_folders()) or _by_finders(name)
    return Path(found.origin) if found is not None and found.origin not in (None, "namespace") else None


def installed_folders() -> list[str]:
    """The folders of packages, and folders that their `.pth` files add."""
    folders = [*site.getsitepackages(), *(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    folders = list(dict.fromkeys(folders))
    added = [
        str(Path(folder, line))
        for folder in folders
        for file in sorted(Path(folder).glob("*.pth"))
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip() and not line.startswith(("#", "import ", "import\t"))
    ]
    return [*folders, *added]


def _by_finders(name: str) -> ModuleSpec | None:
    """The module as finders of editable installs know it.

    They were put into this process at its start.
    """
    for finder in sys.meta_path:
        spec = None if finder in _OF_PYTHON else finder.find_spec(name, None)
        if spec is not None:
            return spec
    return None
