"""A place of its own for each model in a process that several share: its folder leads Python's path and
is the working directory, and modules that came from there are seen by nobody else.

    space = ModelSpace(folder)
    with space.entered():
        import torchport_runtime         # the one that this archive carries
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


class ModelSpace:
    """Every archive has a handler, and often a runtime, of the same name as another's."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._modules: dict[str, ModuleType] = {}

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be in this place."""
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
