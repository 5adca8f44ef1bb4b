"""Runs the user's code, and reports its errors with their lines."""

from __future__ import annotations

import importlib
import importlib.util
import linecache
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType

from torchport.errors import RecipeError, TorchportError
from torchport.recipe.contract import Recipe

_LIBRARIES = ("torch", "torchport", "torchport_runtime", "onnxscript", "onnx", "importlib")
_STACK_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in')

_EXTRAS = {
    **dict.fromkeys(("torch", "torchvision", "sklearn", "onnx", "safetensors"), "train"),
    **dict.fromkeys(("pycocotools", "sacrebleu", "tokenizers"), "zoo"),
}
"""The extra that installs a package that a recipe may miss."""


@contextmanager
def running(path: Path, what: str, error: type[TorchportError] = RecipeError) -> Iterator[None]:
    """Turn any exception of the user's code into `error`.

    Its message has file, line and reason. `sys.exit` counts as an exception.
    """
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
        if isinstance(err, ModuleNotFoundError) and err.name in _EXTRAS:
            said += f" (pip install 'torchport[{_EXTRAS[err.name]}]')"
        raise error(f"{where(err, path)}: {what}: {type(err).__name__}: {said}") from err


_appended: set[str] = set()
_brought: set[str] = set()


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Let imports inside find the files of `folder`, last in the path.

    They find these files as they are now, even if another folder's file of the same name was imported
    before.
    """
    for other in _appended - {str(folder)}:
        with suppress(ValueError):
            sys.path.remove(other)
        _appended.discard(other)
    for name in _brought:
        sys.modules.pop(name, None)
    _brought.clear()
    if str(folder) not in sys.path:
        # Last, so that a file beside the recipe cannot shadow a package.
        sys.path.append(str(folder))
        _appended.add(str(folder))
    importlib.invalidate_caches()
    before = set(sys.modules)
    try:
        yield
    finally:
        new = {name: sys.modules[name] for name in set(sys.modules) - before}
        _brought.update(_modules_of(folder, new))


def _modules_of(folder: Path, modules: Mapping[str, ModuleType]) -> Iterator[str]:
    """Names of the modules that are the user's files in `folder`.

    A package that is installed below it is not.
    """
    folder = folder.resolve()
    libraries = (Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib"))
    others = [library for library in libraries if not folder.is_relative_to(library)]
    for name, module in modules.items():
        file = Path(getattr(module, "__file__", None) or "/").resolve()
        own = module.__name__.partition(".")[0] in ("torchport", "torchport_runtime")
        if file.is_relative_to(folder) and not own and not any(map(file.is_relative_to, others)):
            yield name


def imported_files(folder: Path) -> list[Path]:
    """The files of `folder` that were imported in the last `importing_from`."""
    found = (getattr(sys.modules.get(name), "__file__", None) for name in _brought)
    return sorted({Path(file).resolve() for file in found if file and Path(file).is_relative_to(folder)})


def execute(path: Path, name: str) -> ModuleType:
    """Run a user's file as the module `name`, from its current source.

    Python's byte code cache misses a change within one second that keeps the file's size.

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


def where_in_user_code(err: BaseException, recipe: Recipe) -> str:
    """The user's line that an error came through; the recipe's, if possible."""
    frames: list[tuple[str, int]] = []
    for link in _chain(err):
        frames += [(f.filename, f.lineno or 0) for f in traceback.extract_tb(link.__traceback__)]
        frames += _frames_in(str(link))
    return _last_of_user(frames, recipe) or recipe.path.name


def line_in_trace(trace: str, recipe: Recipe) -> str:
    """The user's line in a stack trace as text; empty if none."""
    return _last_of_user(_frames_in(trace), recipe)


def _frames_in(text: str) -> list[tuple[str, int]]:
    return [(m["file"], int(m["line"])) for m in _STACK_LINE.finditer(text)]


def _last_of_user(frames: list[tuple[str, int]], recipe: Recipe) -> str:
    beside = [f for f in frames if Path(f[0]).parent == recipe.path.parent]
    other = [f for f in frames if is_model_code(f[0])]
    for found in (beside, other):
        if found:
            return f"{Path(found[-1][0]).name}:{found[-1][1]}"
    return ""


def is_model_code(file: str) -> bool:
    """Whether a file can hold a user's model: not torch's, torchport's or Python's."""
    path = Path(file)
    return (
        file.endswith(".py")
        and path.parent != Path(traceback.__file__).parent
        and not any(path.is_relative_to(folder) for folder in _libraries())
    )


@cache
def _libraries() -> tuple[Path, ...]:
    """Folders of libraries that an error in a user's model passes through.

    They are packages and parts of Python. They are known by place: a user's folder may have any name.
    """
    found = (importlib.util.find_spec(name) for name in _LIBRARIES)
    return tuple(Path(spec.origin).parent for spec in found if spec is not None and spec.origin)


def _chain(err: BaseException | None) -> Iterator[BaseException]:
    while err is not None:
        yield err
        err = err.__cause__ or err.__context__
