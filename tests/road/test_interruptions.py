"""What each stage leaves behind when it is killed, when the disk is full, and when the store cannot be
written: the old state or the new one, and a road that can be gone on.

The stages run in children of a fork server that has imported torch already, and exported a model.
"""

import os
import resource
import signal
import traceback

import pytest

from tests.warm_processes import children
from torchport.errors import TorchportError
from torchport.export.exporting import export
from torchport.package.packaging import package
from torchport.recipe.loading import load_recipe
from torchport.store.folders import Store
from torchport.train.training import train
from torchport.verify.verifying import verify

pytestmark = pytest.mark.slow

STAGES = {
    "train": lambda recipe, store: train(recipe, store.build(recipe.name, recipe.version)),
    "export": lambda recipe, store: export(recipe, store.build(recipe.name, recipe.version)),
    "verify": lambda recipe, store: verify(recipe, store.build(recipe.name, recipe.version)),
    "package": package,
}

TIMED = ("training.json", "measures.json", "parity.html")


def run_stages(path, store, names, report, kill_at=None, largest=None):
    """In a child: run stages; die at the n-th file put in place, or with files of at most `largest` bytes."""
    replace = os.replace
    count = 0

    def replace_or_die(*arguments, **options):
        nonlocal count
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        replace(*arguments, **options)

    os.replace = replace_or_die
    if largest is not None:
        # Writing beyond it fails as on a full disk, in the middle of a file, with another word for it.
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    try:
        recipe = load_recipe(path)
        for name in names:
            STAGES[name](recipe, Store(store))
        report.put(("done", count))
    except TorchportError as err:
        report.put(("refused", str(err)))
    except BaseException:
        report.put(("crashed", traceback.format_exc()))


def in_child(*arguments, **options):
    """What `run_stages` reported; None where it was killed."""
    report = children.SimpleQueue()
    child = children.Process(target=run_stages, args=(*arguments, report), kwargs=options)
    child.start()
    child.join(120)
    assert child.exitcode in (0, -signal.SIGKILL)
    return None if child.exitcode else report.get()


def contents(store):
    """Every file of a store but locks, by name; nothing of it may be a stray."""
    files = {p.relative_to(store).as_posix(): p.read_bytes() for p in store.rglob("*") if p.is_file()}
    return {name: content for name, content in files.items() if not name.endswith(".lock")}


def without_times(files):
    """Measures and the report have latencies, training.json seconds: each is another every time."""
    return {n: content for n, content in files.items() if not n.endswith(TIMED)}


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory):
    import textwrap

    from tests.conftest import TINY

    path = tmp_path_factory.mktemp("recipes") / "tiny_recipe.py"
    path.write_text(textwrap.dedent(TINY))
    return path


@pytest.fixture(scope="module")
def whole(recipe_path, tmp_path_factory):
    """A store with the whole road, as files."""
    store = tmp_path_factory.mktemp("whole")
    assert in_child(recipe_path, store, list(STAGES))[0] == "done"
    return contents(store)


@pytest.mark.parametrize("stage", STAGES)
def test_kill_at_every_file_that_is_put_in_place(recipe_path, whole, stage, tmp_path):
    before = list(STAGES)[: list(STAGES).index(stage)]
    kill_at = 0
    while True:
        store = tmp_path / str(kill_at)
        if before:
            assert in_child(recipe_path, store, before)[0] == "done"
        if in_child(recipe_path, store, [stage], kill_at=kill_at) is not None:
            break
        # Whatever it left, the whole road is gone to the same end.
        assert in_child(recipe_path, store, list(STAGES))[0] == "done"
        assert without_times(contents(store)) == without_times(whole)
        kill_at += 1
    assert kill_at >= 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_told_and_changes_nothing(recipe_path, whole, stage, tmp_path):
    before = list(STAGES)[: list(STAGES).index(stage)]
    if before:
        assert in_child(recipe_path, tmp_path, before)[0] == "done"
    state = contents(tmp_path)
    kind, said = in_child(recipe_path, tmp_path, [stage], largest=100)
    assert kind == "refused", said
    assert "cannot write" in said or "No space left" in said or "too large" in said
    assert contents(tmp_path) == state
    assert in_child(recipe_path, tmp_path, list(STAGES))[0] == "done"
    assert without_times(contents(tmp_path)) == without_times(whole)


@pytest.mark.parametrize("stage", STAGES)
def test_a_store_that_cannot_be_written(recipe_path, stage, tmp_path):
    (tmp_path / "file").write_bytes(b"no folder")
    kind, said = in_child(recipe_path, tmp_path / "file" / "store", [stage])
    assert kind == "refused", said
    assert "file/store" in said
    assert (tmp_path / "file").read_bytes() == b"no folder"
