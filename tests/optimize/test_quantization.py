"""INT8: made only where the held-out metrics hold, layers left in float32 where they must be, and served."""

import json
import shutil
import textwrap

import pytest

from tests.archive_edits import rewrite
from tests.formats_page import missing, undocumented
from tests.optimize.signs import CALIBRATION, LOUD, LOWER, SIGNS
from torchport import load
from torchport.archive.contents import inspect_archive
from torchport.errors import BackendError, QuantizationError, RecipeError, StaleError
from torchport.export.exporting import export
from torchport.model.int8_certificate import require_int8
from torchport.optimize.quantize.quantizing import quantize, require
from torchport.package.packaging import package
from torchport.recipe.loading import load_recipe
from torchport.store.folders import Store
from torchport.targets.checking import check
from torchport.train.training import train
from torchport.verify.verifying import verify
from torchport_runtime import BackendOptions


@pytest.fixture
def clock(monkeypatch):
    """Stands in for the clock, so that what is chosen does not depend on what else the machine does: a
    function that sets how many times as fast as float32 all INT8 versions are."""
    times = {"int8": 0.5}

    def seconds(handlers, batches, *, rounds, at_least=0.0):
        return {name: 1.0 if name == "float32" else times["int8"] for name in handlers}

    monkeypatch.setattr("torchport.optimize.quantize.candidates.interleaved_seconds", seconds)

    def runs(speed):
        times["int8"] = 1 / speed

    return runs


@pytest.fixture(scope="module")
def proofs(tmp_path_factory):
    """What the recipe above has become with some changes: the road to a certificate takes seconds."""
    made = {}

    def proof(changes):
        if changes not in made:
            text = textwrap.dedent(SIGNS)
            for old, new in changes:
                assert old in text, old
                text = text.replace(old, new)
            folder = tmp_path_factory.mktemp("signs")
            (folder / "signs_recipe.py").write_text(text, encoding="utf-8")
            recipe, build = load_recipe(folder / "signs_recipe.py"), Store(folder).build("signs", "1.0")
            train(recipe, build)
            export(recipe, build)
            assert not verify(recipe, build).failures
            made[changes] = folder
        return made[changes]

    return proof


@pytest.fixture
def proven(proofs, store):
    """The recipe above with changes, exported and proven, in a store of the test's own."""

    def prove(*changes):
        folder = proofs(changes)
        shutil.copytree(folder / ".build", store.path / ".build")
        recipe = load_recipe(folder / "signs_recipe.py")
        return recipe, store.build("signs", "1.0")

    return prove


def test_a_model_whose_metric_holds_is_quantised_whole(proven, clock):
    recipe, folder = proven()
    result = require(quantize(recipe, folder, max_drop=0.005))
    assert result.done
    assert result.certificate["left_in_float32"] == []
    assert result.certificate["metrics"]["accuracy"] == {"float32": 1.0, "int8": 1.0}
    assert result.certificate["agreement"] == {"compared": 0, "agreed": 0}  # A regressor's numbers.
    assert result.certificate["calibration_rows"] == {"main": 16}
    assert {row["method"] for row in result.report["tried"]} == {"minmax", "entropy", "percentile", "dynamic"}
    assert sum(row["chosen"] for row in result.report["tried"]) == 1
    assert (folder.path / "main.int8.onnx").read_bytes() != (folder.path / "main.onnx").read_bytes()
    assert json.loads((folder.path / "int8.json").read_text()) == result.certificate
    for name, record in (("int8.json", result.certificate), ("quantization.json", result.report)):
        assert undocumented(name, record) == missing(name, record) == []
    again = quantize(recipe, folder, max_drop=0.005)
    assert (again.done, again.certificate) == (False, result.certificate)
    assert quantize(recipe, folder, max_drop=0.01).why == "another gate"


@pytest.mark.parametrize("batch_size", [1, 4])
def test_one_client_decides_no_others_precision(proven, clock, batch_size):
    """What measures ranges on a batch is tried where inputs have bounds. The recipe's own batch size does not
    count: a tuning or an operator may serve with another."""
    changes = ((", low=-1.0, high=1.0", ""), ("batch_size=4", f"batch_size={batch_size}"))
    report = quantize(*proven(*changes), max_drop=0.005).report
    assert "dynamic" not in {row["method"] for row in report["tried"]}
    assert "'image' has no bounds" in report["impossible"]["dynamic"]


def test_the_same_bytes_on_a_second_run(proven, clock):
    recipe, folder = proven()
    names = ("main.int8.onnx", "int8.json")
    quantize(recipe, folder, max_drop=0.005)
    before = [(folder.path / name).read_bytes() for name in names]
    assert quantize(recipe, folder, max_drop=0.005, force=True).done
    assert [(folder.path / name).read_bytes() for name in names] == before


@pytest.mark.parametrize("goal", [(), (LOWER,)])
def test_layers_that_break_the_metric_stay_in_float32(proven, clock, goal):
    """The loud channel takes all of an integer's range: the convolutions it passes between stay as they are,
    the rest is INT8. An error, which is better when it is lower, is held in the same way."""
    recipe, folder = proven(LOUD, *goal)
    result = require(quantize(recipe, folder, max_drop=0.005))
    whole = [row for row in result.report["tried"] if not row["left_in_float32"]]
    assert whole
    assert all("worse than" in row["problems"][0] for row in whole)
    left = result.certificate["left_in_float32"]
    assert 0 < len(left) < result.certificate["layers"]
    assert result.certificate["metrics"]["accuracy"] == {"float32": 1.0, "int8": 1.0}
    assert not any("linear" in layer for layer in left)


def test_a_wide_gate_lets_a_bad_model_pass_but_for_its_goal(proven, clock):
    """A goal that float32 reaches is to be reached still, however much --max-drop allows."""
    recipe, folder = proven(LOUD)
    result = quantize(recipe, folder, max_drop=1.0)
    whole = next(row for row in result.report["tried"] if row["method"] == "minmax")
    assert whole["metrics"]["accuracy"] < 0.9
    assert "which float32 reaches" in whole["problems"][0]


def test_what_is_not_faster_is_refused(proven, clock):
    recipe, folder = proven()
    quantize(recipe, folder, max_drop=0.005)
    clock(0.9)
    result = quantize(recipe, folder, max_drop=0.004)
    with pytest.raises(QuantizationError, match=r"nothing is faster than float32.* 0.900 times") as caught:
        require(result)
    assert caught.value.exit_code == 1
    assert result.report["tried"]
    assert not any(row["chosen"] for row in result.report["tried"])
    assert not (folder.path / "main.int8.onnx").exists(), "of a wider gate than the one that refused"
    assert not (folder.path / "int8.json").exists()


def test_what_passes_no_gate_is_refused(proven, clock):
    recipe, folder = proven(LOUD)
    clock(0.5)  # So slow that leaving layers in float32 is not worth trying.
    with pytest.raises(QuantizationError, match="nothing passes the gate.*accuracy is"):
        require(quantize(recipe, folder, max_drop=0.005))


def test_held_out_inputs_are_not_calibrated_on(proven, clock):
    recipe, folder = proven(('yield {"image": pictures(0, 16)[0]}', 'yield {"image": pictures(1, 24)[0]}'))
    with pytest.raises(RecipeError, match="24 rows, are all held out.*calibration"):
        quantize(recipe, folder, max_drop=0.005)


def test_a_recipes_own_calibration_inputs(proven, clock):
    recipe, folder = proven(
        ('yield {"image": pictures(0, 16)[0]}', 'yield {"image": pictures(1, 24)[0]}'),
        CALIBRATION,
    )
    certificate = require(quantize(recipe, folder, max_drop=0.005)).certificate
    assert certificate["calibration_rows"] == {"main": 128}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (('goals = {"accuracy": ">= 0.9"}', ""), "no goals"),
        (("zip(*pictures(1, 24))", "()"), "heldout.. gives nothing"),
    ],
)
def test_without_a_metric_there_is_no_gate(proven, clock, change, reason):
    recipe, folder = proven(change)
    with pytest.raises(RecipeError, match=reason):
        quantize(recipe, folder, max_drop=0.005)


def test_an_unproven_model_is_not_quantised(built, clock):
    recipe, folder = built(source=SIGNS)
    with pytest.raises(StaleError, match="torchport verify signs"):
        quantize(recipe, folder, max_drop=0.005)


def test_packaged_and_served_in_process(proven, store, clock):
    recipe, folder = proven()
    plain = package(recipe, store).path
    with pytest.raises(StaleError, match="no INT8 version: torchport quantize signs"):
        package(recipe, store, precision="int8")
    with pytest.raises(BackendError, match="has no INT8 version: torchport quantize signs"):
        load(plain, precision="int8")
    quantize(recipe, folder, max_drop=0.005)
    archive = package(recipe, store).path
    contents = inspect_archive(archive)
    assert contents.problems == ()
    assert {"main.onnx", "main.int8.onnx", "int8.json"} <= {entry.name for entry in contents.entries}
    assert "precision" not in contents.config["torchport"], "float32 unless somebody says otherwise"
    picture = recipe.requests()[0].json
    with load(archive) as floats, load(archive, precision="int8") as integers:
        one, other = floats.predict(picture), integers.predict(picture)
    assert one != other
    # 8 bits of a range of about 1: a hundredth of it is two steps, of four channels that are summed.
    assert one == pytest.approx(other, abs=0.05)
    served = package(recipe, store, precision="int8").path
    assert inspect_archive(served).config["torchport"]["precision"] == "int8"
    assert inspect_archive(served).problems == ()
    with load(served) as model:
        assert model.options.precision == "int8"
        assert model.predict(picture) == other
    with pytest.raises(BackendError, match="only onnxruntime has it"):
        load(served, backend="torchscript")


def test_the_environment_chooses_the_precision(proven, store, clock, monkeypatch):
    recipe, folder = proven()
    quantize(recipe, folder, max_drop=0.005)
    archive = package(recipe, store).path
    monkeypatch.setenv("TORCHPORT_PRECISION", "int8")
    with load(archive) as model:
        assert model.options.precision == "int8"
    monkeypatch.setenv("TORCHPORT_PRECISION", "int4")
    with pytest.raises(BackendError, match="precision 'int4'"):
        load(archive)


def test_stale_int8_is_not_packaged(proven, store, clock):
    recipe, folder = proven()
    quantize(recipe, folder, max_drop=0.005)
    assert require_int8(recipe, folder)
    (folder.path / "main.int8.onnx").write_bytes(b"changed")
    with pytest.raises(StaleError, match=r"main.int8.onnx: torchport quantize signs") as caught:
        package(recipe, store)
    assert "int8.json" in str(caught.value)
    (folder.path / "int8.json").unlink()
    assert "int8.json" not in {entry.name for entry in inspect_archive(package(recipe, store).path).entries}


def test_a_changed_archive_is_told(proven, store, clock, tmp_path):
    recipe, folder = proven()
    quantize(recipe, folder, max_drop=0.005)
    archive = package(recipe, store, precision="int8").path
    changed = rewrite(archive, tmp_path / "changed.mar", {"main.int8.onnx": b"other"})
    assert "main.int8.onnx is not what int8.json was made for" in inspect_archive(changed).problems
    without = rewrite(archive, tmp_path / "without.mar", {"int8.json": None})
    assert any("int8.json is missing" in problem for problem in inspect_archive(without).problems)
    certificate = json.loads((folder.path / "int8.json").read_text())
    certificate["binding"]["artifacts"]["main.onnx"] = "0" * 64
    other = rewrite(archive, tmp_path / "other.mar", {"int8.json": json.dumps(certificate).encode()})
    assert "int8.json was made of another main.onnx than parity.json" in inspect_archive(other).problems


def test_float32_is_not_spoken_of():
    """The runtimes of archives from before there were precisions refuse options that they do not know."""
    assert "precision" not in BackendOptions(precision="float32").to_json()
    assert BackendOptions(**BackendOptions(precision="int8").to_json()).precision == "int8"
    assert BackendOptions().numerics() != BackendOptions(precision="int8").numerics()
    with pytest.raises(BackendError, match="made for the CPU"):
        BackendOptions(precision="int8", device="cuda:0")


def test_a_server_serves_it_and_the_gate_holds_there(proven, store, clock):
    recipe, folder = proven()
    quantize(recipe, folder, max_drop=0.005)
    package(recipe, store)
    result = check(recipe, store, precision="int8")
    assert (result.failures, result.missed) == ([], [])
    assert result.record["precision"] == "int8"
    assert result.record["metrics"]["accuracy"] == 1.0
    assert check(recipe, store).record["precision"] == "float32"
