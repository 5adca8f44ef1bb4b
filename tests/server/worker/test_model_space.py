"""Models in one process run their own code, and see nothing that another one has done to the process."""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from torchport.server.worker.model_space import ModelSpace, NotShareable


class Space:
    """A model's folder with these files, in which a test can do what a handler does."""

    def __init__(self, folder: Path, files: dict[str, str]) -> None:
        self.folder = folder
        folder.mkdir()
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self._space = ModelSpace(folder)

    @contextmanager
    def entered(self) -> Iterator[None]:
        importlib.invalidate_caches()
        with self._space.entered():
            yield

    def require_shareable(self) -> None:
        self._space.require_shareable()

    def who(self, module: str) -> str:
        """Whose module of that name this model gets."""
        with self.entered():
            found: str = importlib.import_module(module).WHO
            return found


def process() -> tuple[set[str], list[str], dict[str, str], str]:
    """What models must not change for each other."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return set(sys.modules), list(sys.path), environment, os.getcwd()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Space]]:
    before = process()
    yield lambda name, files: Space(tmp_path / name, files)
    modules, *others = process()
    assert {name.partition(".")[0] for name in modules - before[0]} <= sys.stdlib_module_names
    assert others == list(before[1:])


def two(make: Callable[..., Space], file: str) -> list[Space]:
    """Two models, each with a file of that name that says whose it is."""
    return [make(name, {file: f"WHO = {name!r}"}) for name in ("one", "two")]


def test_folders_without_init_are_each_models_own(make: Callable[..., Space]) -> None:
    spaces = two(make, "shared_parts/deep/inner.py")
    for _ in range(2):
        assert [space.who("shared_parts.deep.inner") for space in spaces] == ["one", "two"]
    with spaces[1].entered():
        from shared_parts.deep import inner  # type: ignore[import-not-found]

        assert inner.WHO == "two"


@pytest.mark.parametrize("relative", [False, True])
def test_what_a_handler_adds_to_the_path_is_its_own(make: Callable[..., Space], relative: bool) -> None:
    spaces = two(make, "lib/only_in_lib.py")
    for space in spaces:
        with space.entered():
            sys.path.insert(0, "lib" if relative else str(space.folder / "lib"))
    for _ in range(2):
        assert [space.who("only_in_lib") for space in spaces] == ["one", "two"]


def test_a_path_that_one_has_added_does_not_help_another(make: Callable[..., Space]) -> None:
    one, two = make("one", {"lib/only_in_lib.py": "WHO = 'one'"}), make("two", {})
    with one.entered():
        sys.path = [*sys.path, str(one.folder / "lib")]
    assert one.who("only_in_lib") == "one"
    with pytest.raises(ModuleNotFoundError):
        two.who("only_in_lib")


def test_modules_from_elsewhere_are_each_models_own(make: Callable[..., Space], tmp_path: Path) -> None:
    spaces = [make(name, {f"../elsewhere_{name}/odd_one.py": f"WHO = {name!r}"}) for name in ("one", "two")]
    for space in spaces:
        with space.entered():
            sys.path.append(str(tmp_path / f"elsewhere_{space.folder.name}"))
    assert [space.who("odd_one") for space in spaces] == ["one", "two"]


def test_modules_that_a_handler_makes_are_its_own(make: Callable[..., Space]) -> None:
    one, two = make("one", {}), make("two", {"made_here.py": "WHO = 'two'"})
    with one.entered():
        sys.modules["made_here"] = types.ModuleType("made_here")
        sys.modules["made_here"].WHO = "one"  # type: ignore[attr-defined]
    assert [one.who("made_here"), two.who("made_here")] == ["one", "two"]


def test_a_module_of_pythons_that_a_handler_replaces_is_replaced_for_it_alone(
    make: Callable[..., Space],
) -> None:
    one, before = make("one", {}), sys.modules["json"]
    with one.entered():
        sys.modules["json"] = types.ModuleType("json")
        sys.modules.pop("decimal", None)
    assert sys.modules["json"] is before
    with one.entered():
        assert sys.modules["json"] is not before


def test_the_environment_and_the_working_directory_are_each_models_own(make: Callable[..., Space]) -> None:
    one, two = make("one", {"sub/x.txt": ""}), make("two", {})
    with one.entered():
        os.environ["ONLY_ONE_HAS_THIS"] = "1"
        os.environ.pop("PATH", None)
        os.chdir("sub")
    with two.entered():
        assert "ONLY_ONE_HAS_THIS" not in os.environ
        assert "PATH" in os.environ
        assert Path.cwd() == two.folder
    with one.entered():
        assert os.environ["ONLY_ONE_HAS_THIS"] == "1"
        assert "PATH" not in os.environ
        assert Path.cwd() == one.folder / "sub"


def test_what_comes_with_python_is_there_once_for_all(make: Callable[..., Space]) -> None:
    one, two = make("one", {}), make("two", {})
    name = "xml.etree.ElementPath"
    had = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "xml"}
    for taken in had:
        del sys.modules[taken]
    try:
        with one.entered():
            found = importlib.import_module(name)
        with two.entered():
            assert importlib.import_module(name) is found
    finally:
        for taken in [n for n in sys.modules if n.partition(".")[0] == "xml"]:
            del sys.modules[taken]
        sys.modules.update(had)


@pytest.mark.parametrize("file", ["statistics.py", "msgspec/__init__.py", "msgspec/data/deep.py"])
def test_a_model_that_brings_what_the_server_has_cannot_share(make: Callable[..., Space], file: str) -> None:
    with pytest.raises(NotShareable, match=file.partition("/")[0].removesuffix(".py")):
        make("one", {file: ""}).require_shareable()
    later = make("later", {f"lib/{file}": ""})
    later.require_shareable()
    with later.entered():
        sys.path.insert(0, str(later.folder / "lib"))
    with pytest.raises(NotShareable):
        later.require_shareable()


def test_data_and_the_runtime_of_an_archive_do_not_keep_it_from_sharing(make: Callable[..., Space]) -> None:
    files = {"torchport_runtime/__init__.py": "", "json/labels.json": "{}", "MAR-INF/MANIFEST.json": ""}
    make("one", {**files, "model_handler.py": ""}).require_shareable()
