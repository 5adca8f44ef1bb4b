import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import torchport
import torchport_runtime
from tests import kept_builds
from tests.kept_builds import KEPT_PER_MODEL, kept_build
from torchport.recipe.loading import load_recipe
from torchport.store.folders import Store


@pytest.fixture
def stages():
    """Stands in for the stages: writes the seed into the archive, and counts."""

    def run(recipe, store, *, seed, weights):
        run.count += 1
        build = store.build(recipe.name, recipe.version)
        build.path.mkdir(parents=True)
        build.training.write_text("trained")
        archive = store.archive(recipe.name, recipe.version)
        archive.write_text(f"seed {seed}")
        return archive

    run.count = 0
    return run


@pytest.fixture
def build(stages, tmp_path):
    """Build into a store of its own each time."""

    def run(recipe, **options):
        folder = tmp_path / "stores" / str(time.monotonic_ns())
        return kept_build(stages, recipe, Store(folder), kept=tmp_path / "kept", **options)

    return run


def test_a_second_build_is_a_copy(build, stages, write_recipe):
    recipe = load_recipe(write_recipe())
    first, second = build(recipe), build(recipe)
    assert stages.count == 1
    assert first != second
    assert first.read_text() == second.read_text() == "seed 0"
    assert Store(second.parent).build("tiny", "1.0").training.read_text() == "trained"
    first.write_text("changed by a test")
    assert build(recipe).read_text() == "seed 0"


def test_whatever_it_is_made_from_makes_another(build, stages, write_recipe, tmp_path, monkeypatch):
    recipe = load_recipe(write_recipe())
    weights = tmp_path / "weights.pt"
    weights.write_text("weights")
    build(recipe)
    build(recipe, seed=1)
    build(recipe, weights=weights)
    weights.write_text("others")
    build(recipe, weights=weights)
    build(load_recipe(write_recipe(("[1.0, 2.0, 3.0]", "[1.0, 2.0, 4.0]"))))
    assert stages.count == 5
    for name in ("_library", "_environment"):
        monkeypatch.setattr(kept_builds, name, dict)
        build(recipe)
    assert stages.count == 7


def test_every_file_of_the_library_is_part_of_it():
    digests = kept_builds._library()
    for module in (torchport, torchport_runtime):
        folder = Path(module.__file__).parent
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
        assert files
        assert files <= digests[folder.name].keys()
    assert "regressor.py" in digests["handlers"]


def test_what_was_not_finished_is_not_taken(build, stages, write_recipe, tmp_path):
    recipe = load_recipe(write_recipe())

    def killed(recipe, store, **options):
        (store.path / "half").mkdir(parents=True)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_builds.inspect, "getsource", lambda stages: "the same stages")
        with pytest.raises(KeyboardInterrupt):
            kept_build(killed, recipe, Store(tmp_path / "store"), kept=tmp_path / "kept")
        assert not (tmp_path / "store").exists()
        archive = build(recipe)
    assert stages.count == 1
    assert not (archive.parent / "half").exists()


def test_who_wants_the_same_build_waits_for_it(write_recipe, stages, tmp_path):
    recipe = load_recipe(write_recipe())

    def slow(recipe, store, **options):
        time.sleep(0.3)
        return stages(recipe, store, **options)

    def run(number):
        return kept_build(slow, recipe, Store(tmp_path / str(number)), kept=tmp_path / "kept").read_text()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(4))) == ["seed 0"] * 4
    assert stages.count == 1


def test_old_builds_are_removed(build, stages, write_recipe, tmp_path):
    recipe = load_recipe(write_recipe())
    for seed in range(KEPT_PER_MODEL + 2):
        build(recipe, seed=seed)
        build(recipe, seed=0)  # Used last, and made first.
    kept = [path for path in (tmp_path / "kept" / "tiny-1.0").iterdir() if path.is_dir()]
    assert len(kept) == KEPT_PER_MODEL
    before = stages.count
    build(recipe, seed=0)
    assert stages.count == before
    build(recipe, seed=1)
    assert stages.count == before + 1
