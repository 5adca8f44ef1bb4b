"""Fixtures shared by the tests. Stages are run for real; what the shipped recipes become is kept, until the
library changes, by `tests/kept_builds.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.exporter_table import keep_table
from tests.kept_builds import kept_build
from torchport.export.exporting import export
from torchport.package.packaging import package
from torchport.recipe.contract import Recipe
from torchport.recipe.loading import load_recipe
from torchport.store.folders import BuildFolder, Store
from torchport.targets import torchserve_setup
from torchport.train.training import train
from torchport.verify.verifying import verify

ROOT = Path(__file__).parent.parent

ROAD_FIXTURES = frozenset(
    {
        *("shipped", "linear_archive", "digits_archive", "built", "shipped_as"),
        *("proofs", "proven", "road", "compiled", "shipped_in_half"),
    }
)
"""Those that train, export or prove a model."""

NOT_QUICK = ("road", "server", "serving", "slow", "gpu")


if "PYTEST_XDIST_WORKER" in os.environ:
    # Several test processes share the cores: the threads of one would wait for those of another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs tests in the background has it ignored, and what the tests start would ignore it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.distribution import LongestFirst

    return LongestFirst(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark `road` what a fixture takes down the road, and `quick` what is marked with nothing slower."""
    for item in items:
        if not ROAD_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("road")
        if not any(item.get_closest_marker(name) for name in NOT_QUICK):
            item.add_marker("quick")


def pytest_runtest_setup() -> None:
    keep_table()


TINY = """
    import numpy as np
    import torch
    from torch import nn
    from torchport import Recipe, Request, TensorSpec

    class Tiny(Recipe):
        name, version, handler = "tiny", "1.0", "regressor"
        inputs = {"x": TensorSpec("float32", ("batch", 3))}
        outputs = {"y": TensorSpec("float32", ("batch", 2))}

        def build(self):
            return nn.Linear(3, 2)

        def samples(self):
            yield {"x": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)}

        def requests(self):
            return [Request(json=[1.0, 2.0, 3.0], tensors={"x": np.array([[1, 2, 3]], np.float32)})]
"""


def run_stages(recipe: Recipe, store: Store, *, seed: int = 0, weights: Path | None = None) -> Path:
    """Train, export, verify and package; returns the archive."""
    folder = store.build(recipe.name, recipe.version)
    train(recipe, folder, seed=seed, weights=weights)
    export(recipe, folder)
    result = verify(recipe, folder)
    assert not result.failures
    return package(recipe, store).path


def environment_without_torchport(folder: Path, *absent: str) -> tuple[Path, Path]:
    """A virtual environment with every package of this one but torchport, and but those whose names begin as
    `absent` says; its Python and site-packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip())
    for installed in Path(sysconfig.get_path("purelib")).iterdir():
        name = installed.name.lower()
        left_out = "torchport" in name or name.startswith(absent)
        if not left_out and not (packages / installed.name).exists():
            (packages / installed.name).symlink_to(installed)
    return python, packages


@pytest.fixture(scope="session", autouse=True)
def ports_apart() -> Iterator[None]:
    """Give each test process ports of its own to choose from."""
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    index = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchserve_setup, "UNASSIGNED_PORTS", torchserve_setup.UNASSIGNED_PORTS[index::count])
        yield


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store, this process's own, for what the shipped recipes become."""
    return Store(tmp_path_factory.mktemp("shipped"))


@pytest.fixture(scope="session")
def linear_archive(shipped: Store) -> Path:
    return kept_build(run_stages, load_recipe("linear"), shipped)


@pytest.fixture(scope="session")
def digits_archive(shipped: Store) -> Path:
    """ResNet-18, trained in full: a minute on two cores, the first time."""
    return kept_build(run_stages, load_recipe("digits_resnet18"), shipped)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe file: `TINY` with pairs of old and new text replaced; methods stand 4 deep."""

    def write(*changes: tuple[str, str], source: str = TINY, name: str = "tiny_recipe") -> Path:
        text = textwrap.dedent(source)
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / "recipes" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def built(write_recipe: Callable[..., Path], store: Store) -> Callable[..., tuple[Recipe, BuildFolder]]:
    """Write a recipe as `write_recipe` does, train it and export it."""

    def build(*changes: tuple[str, str], source: str = TINY) -> tuple[Recipe, BuildFolder]:
        recipe = load_recipe(write_recipe(*changes, source=source))
        folder = store.build(recipe.name, recipe.version)
        train(recipe, folder)
        export(recipe, folder)
        return recipe, folder

    return build
