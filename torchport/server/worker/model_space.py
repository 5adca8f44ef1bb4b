"""Isolates models that share one process: path, working directory, modules.

    space = ModelSpace(folder)
    with space.entered():
        import torchport_runtime         # the archive's own copy

Inside, the model's folder is first on Python's path and is the working directory. Modules that were
imported from it are visible to no other model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


class ModelSpace:
    """One model's path, working directory and modules.

    Archives often have handlers and runtimes of the same names.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._modules: dict[str, ModuleType] = {}

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Switch to this model's path, working directory and modules."""
        sys.path.insert(0, self._folder)
        os.chdir(self._folder)
        sys.modules.update(self._modules)
        before = len(sys.modules)
        try:
            yield
        finally:
            if len(sys.modules) != before or not self._modules:
                self._modules |= {n: m for n, m in list(sys.modules.items()) if self._is_own(m)}
            for name in self._modules:
                sys.modules.pop(name, None)
            if self._folder in sys.path:
                sys.path.remove(self._folder)

    def _is_own(self, module: ModuleType) -> bool:
        path = getattr(module, "__file__", None)
        return isinstance(path, str) and path.startswith(self._folder + os.sep)
