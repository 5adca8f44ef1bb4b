"""Finds the handler that an archive's manifest names, by TorchServe's rules.

entry = load_entry_point("regressor.py", envelope="")
entry.initialize(context)
entry.handle(data, context)
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class EntryPoint:
    """A handler's functions; `owner` is its object, None for a plain function."""

    handle: Callable[[Any, Any], Any]
    initialize: Callable[[Any], Any]
    owner: Any = None


def load_entry_point(handler: str, envelope: str = "") -> EntryPoint:
    """Load the handler that an archive's manifest names.

    `handler` is `file.py`, `file.py:function`, `package.module`, or the name of one of TorchServe's
    handlers, such as `image_classifier`. `folder/file.py` is `file.py`, as on TorchServe; where the archive
    has no such file, it is the one in the folder. `envelope` is one of TorchServe's request envelopes,
    such as `kserve`; "" for none.

    Raises:
        ImportError: the module, or something that it imports, is missing.
        ValueError: the module has neither the function nor exactly one class.
    """
    name, _, function = handler.partition(":")
    folder, _, file = name.rpartition("/")
    module = _import(file.removesuffix(".py"), folder)
    entry = _function(module, function or "handle") or _class(module)
    if not envelope:
        return entry
    wrapper = _only_class(importlib.import_module(f"ts.torch_handler.request_envelope.{envelope}"))
    return EntryPoint(wrapper(entry.handle).handle, entry.initialize, entry.owner)


def _import(name: str, folder: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as err:
        if err.name != name:
            raise  # Something that the handler imports: that is what is missing.
    # The model's own folder is the path's first one.
    inner = Path(sys.path[0]) / folder
    if folder and (inner / f"{name}.py").is_file():
        sys.path.insert(1, str(inner))
        return importlib.import_module(name)
    try:
        return importlib.import_module(f"ts.torch_handler.{name}")
    except ModuleNotFoundError as err:
        if err.name not in ("ts", f"ts.torch_handler.{name}"):
            raise
        ours = "" if err.name != "ts" else " (TorchServe's own handlers need it: pip install torchserve)"
        raise ImportError(f"handler {name!r}: the archive has no {name}.py{ours}") from err


def _function(module: ModuleType, name: str) -> EntryPoint | None:
    function = getattr(module, name, None)
    if not callable(function):
        return None
    return EntryPoint(function, lambda context: function(None, context))


def _class(module: ModuleType) -> EntryPoint:
    handler = _only_class(module)()
    for method in ("initialize", "handle"):
        if not hasattr(handler, method):
            raise ValueError(f"class {type(handler).__name__} in {module.__name__} has no {method} method")
    return EntryPoint(handler.handle, handler.initialize, handler)


def _only_class(module: ModuleType) -> type[Any]:
    classes = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    if len(classes) != 1:
        names = ", ".join(c.__name__ for c in classes) or "none"
        raise ValueError(f"{module.__name__} is to define a function 'handle' or one class; it has {names}")
    return classes[0]
