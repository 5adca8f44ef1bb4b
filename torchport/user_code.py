"""Runs what a user wrote in a recipe or a handler: whatever it raises is reported with its line."""

from __future__ import annotations

import importlib.util
import linecache
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torchport.errors import RecipeError, TorchportError


@contextmanager
def running(path: Path, what: str, error: type[TorchportError] = RecipeError) -> Iterator[None]:
    """Turn any exception of the user's code, `sys.exit` too, into `error` with file, line and reason."""
    try:
        yield
    except error:
        raise
    except TorchportError as err:
        raise error(f"{where(err, path)}: {err}") from err
    except SyntaxError as err:
        raise error(f"{Path(err.filename or path).name}:{err.lineno}: syntax error: {err.msg}") from err
    except (Exception, SystemExit) as err:
        said = str(err).strip()[:400]
        raise error(f"{where(err, path)}: {what}: {type(err).__name__}: {said}") from err


def execute(path: Path, name: str) -> ModuleType:
    """Run a user's file as the module `name`, from its source as it is now.

    Python's byte code cache takes a file that was changed within a second, and kept its size, for unchanged.

    Raises:
        RecipeError: the file does not parse, or fails.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise RecipeError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    linecache.cache.pop(str(path), None)
    with running(path, "import"):
        exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), vars(module))
    return module


def where(err: BaseException, path: Path) -> str:
    """The last line of `path` that the error passed through, as `file.py:12`."""
    lines = [f.lineno for f in traceback.extract_tb(err.__traceback__) if Path(f.filename) == path]
    return f"{path.name}:{lines[-1]}" if lines else path.name
