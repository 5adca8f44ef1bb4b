"""Isolates models that share one process: path, modules, environment, working directory.

    space = ModelSpace(folder)
    with space.entered():
        import torchport_runtime         # the archive's own copy

Inside, the model's folder is first on Python's path and is the working directory. What is imported from
there, or from where its handler looks for modules, is visible to no other model; what comes with Python and
the server's packages is imported once for all. What a handler does to the path, the environment and the
working directory is there again when its model is entered again, and for no other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

_OWN_NAMES = frozenset({"torchport_runtime"})
"""What each archive has for itself, although the server's packages have it, too."""

_SUFFIXES = (".py", ".pyc", ".so", ".pyd")


class NotShareable(ImportError):
    """A model that cannot share a process: it brings a module that the process has already."""


class ModelSpace:
    """One model's path, modules, environment and working directory.

    Archives often have handlers and runtimes of the same names.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._base = list(sys.path)
        self._path = [self._folder, *self._base]
        self._roots = [self._folder]
        """Where the model's own modules come from."""
        self._modules: dict[str, ModuleType] = {}
        self._environment = dict(os.environ)
        self._directory = self._folder

    def require_shareable(self) -> None:
        """Refuse a model with a module that Python or the server's packages have, too.

        Whose module a library gets would depend on which model asked first. Call it before the model is
        loaded, and again afterwards: its handler may have added folders to Python's path.

        Raises:
            NotShareable: there is such a module.
        """
        for root in self._roots:
            for name in _top_level_names(root):
                if name not in _OWN_NAMES and _is_found(name):
                    raise NotShareable(
                        f"{name} is a module of this model and of the server's Python: a model that brings "
                        "such a module needs a process of its own, without shared_worker"
                    )

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Switch to this model's path, modules, environment and working directory."""
        path, environment, directory = list(sys.path), dict(os.environ), _working_directory()
        sys.path[:] = self._path
        _set_environment(self._environment)
        sys.modules.update(self._modules)
        self._attach()
        before = dict(sys.modules)
        try:
            os.chdir(self._directory)
            yield
        finally:
            self._leave(before)
            sys.path[:] = path
            _set_environment(environment)
            with suppress(OSError):  # It is gone.
                os.chdir(directory)

    def _leave(self, before: Mapping[str, ModuleType]) -> None:
        """Remember what the model leaves behind, and take its modules out of the process."""
        if sys.path != self._path:
            self._path = list(sys.path)
            known = {*self._base, *self._roots}
            self._roots += [root for root in map(os.path.abspath, self._path) if root not in known]
            # The finders of relative folders keep the working directory that they began in.
            for name in [name for name in sys.path_importer_cache if not os.path.isabs(name)]:
                del sys.path_importer_cache[name]
        self._environment = dict(os.environ)
        self._directory = _working_directory() or self._folder
        shared: dict[str, ModuleType] = {}
        if list(sys.modules.values()) != list(before.values()):
            shared = {name: m for name, m in before.items() if self._modules.get(name) is not m}
            found = {name: m for name, m in list(sys.modules.items()) if shared.get(name) is not m}
            self._modules = {name: module for name, module in found.items() if self._is_own(name, module)}
        self._detach()
        for name in self._modules:
            sys.modules.pop(name, None)
        for name in shared.keys() - sys.modules.keys():
            sys.modules[name] = shared[name]

    def _attach(self) -> None:
        """Make the model's modules attributes of the packages that they are in and that all models see."""
        for parent, child, module in self._in_shared_packages():
            setattr(parent, child, module)

    def _detach(self) -> None:
        for parent, child, module in self._in_shared_packages():
            if getattr(parent, child, None) is module:
                delattr(parent, child)

    def _in_shared_packages(self) -> Iterator[tuple[ModuleType, str, ModuleType]]:
        for name, module in self._modules.items():
            parent, _, child = name.rpartition(".")
            if parent in sys.modules and parent not in self._modules:
                yield sys.modules[parent], child, module

    def _is_own(self, name: str, module: Any) -> bool:
        """Whether a module is this model's, and not Python's or of the server's packages."""
        places = _places(module)
        for place in places:
            own, others = _depth(place, self._roots), _depth(place, self._base)
            if own or others:
                return own > others
        package = name.partition(".")[0]
        if package != name and package in sys.modules:
            # Packages make modules that lie nowhere, and finders of their own find some elsewhere.
            return self._is_own(package, sys.modules[package])
        origin = getattr(getattr(module, "__spec__", None), "origin", None)
        return bool(places) or origin not in ("built-in", "frozen")


def _places(module: Any) -> list[str]:
    """Where a module lies: its file, or the folders of a package without `__init__.py`."""
    with suppress(Exception):  # There may be anything in sys.modules.
        file = getattr(module, "__file__", None)
        return [os.path.abspath(p) for p in ([file] if file else getattr(module, "__path__", None) or [])]
    return []


def _depth(place: str, roots: Iterable[str]) -> int:
    """Length of the longest root that a place lies in; 0 if it lies in none."""
    return max(
        (len(root) for root in roots if root and place.startswith(root.rstrip(os.sep) + os.sep)), default=0
    )


def _top_level_names(root: str) -> list[str]:
    """The modules and packages that may be imported from a folder."""
    names = []
    with suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            name = entry.name.partition(".")[0]
            is_package = entry.is_dir() and next(Path(entry.path).rglob("*.py"), None) is not None
            if name.isidentifier() and (is_package or entry.name.endswith(_SUFFIXES)):
                names.append(name)
    return names


def _is_found(name: str) -> bool:
    """Whether Python finds a module of that name outside of all models."""
    return any(finder.find_spec(name, None) is not None for finder in sys.meta_path)


def _working_directory() -> str:
    """The working directory; empty if it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _set_environment(wanted: Mapping[str, str]) -> None:
    if os.environ == wanted:
        return
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)
