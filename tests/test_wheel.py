"""The wheel has every file of the packages: a checkout does not tell, as it has them all."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT

TRACKED = ("torchport", "torchport_runtime", "export", "handlers", "deploy")
INSTALLED = {"export": "torchport/recipes", "handlers": "torchport/handlers", "deploy": "torchport/deploy"}
"""Folders at the top of the tree that the wheel has inside the package."""


def build_wheel(folder):
    """The path of a wheel of this tree, built below `folder`."""
    source = folder / "source"
    for name in TRACKED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(wheel, check=True, capture_output=True)
    (built,) = folder.glob("torchport-*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    suffixes = {
        "torchport": (".py", ".j2", ".typed"),
        "torchport_runtime": (".py", ".typed"),
        "deploy": (".properties",),
    }
    expected = {
        f"{INSTALLED.get(name, name)}/{path.relative_to(ROOT / name).as_posix()}"
        for name in TRACKED
        for path in (ROOT / name).rglob("*")
        if path.suffix in suffixes.get(name, (".py",))
    }
    assert packed == expected
    # Without them, type checkers do not read the annotations of an installed package.
    assert {"torchport/py.typed", "torchport_runtime/py.typed"} <= packed


def test_every_folder_says_what_it_is_for_and_imports_nothing():
    """But for the two public faces, an import there would cost a worker its start, and close circles."""
    for name in ("torchport", "torchport_runtime"):
        folders = {path.parent for path in (ROOT / name).rglob("*.py")}
        for folder in sorted(folders - {ROOT / name}):
            text = (folder / "__init__.py").read_text(encoding="utf-8")
            assert text.startswith('"""'), folder
            assert text.count('"""') == 2, folder
            assert text.endswith('"""\n'), folder
