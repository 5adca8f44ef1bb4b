import io
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from torchport.errors import StaleError, TorchportError, TrainingError
from torchport.model.trained import trained_model
from torchport.recipe.loading import load_recipe
from torchport.store.files import read_json
from torchport.train.training import keep_weights, train

TRAINED = (
    "def samples(self):",
    """def train(self, model, run):
        import random, time
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        run.checkpoint_every_s = 0.0
        (run.assets / "labels.txt").write_text("a")
        for step in range(run.restore(model=model, optimizer=optimizer), 30):
            noise = random.random() + np.random.random()
            x = torch.randn(8, 3) * noise
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            run.checkpoint(step + 1, model=model, optimizer=optimizer)
            if (run.cache / "slow").exists():
                (run.cache / "step").write_text(str(step))
                time.sleep(0.05)
        return {"loss": 0.5}

    def samples(self):""",
)


@pytest.fixture
def recipe(write_recipe):
    return load_recipe(write_recipe(TRAINED))


@pytest.fixture
def folder(store):
    return store.build("tiny", "1.0")


def test_the_line_is_the_least_squares_line(shipped, linear_archive):
    metrics = read_json(shipped.build("linear", "1.0").training)["metrics"]
    generator = np.random.default_rng(0)
    x = generator.standard_normal((100, 1))
    y = 3 * x + 2 + generator.standard_normal((100, 1))
    w, b = np.linalg.lstsq(np.hstack([x, np.ones_like(x)]), y, rcond=None)[0].ravel()
    assert abs(metrics["w"] - w) < 1e-3
    assert abs(metrics["b"] - b) < 1e-3
    assert {"train_mse", "heldout_mse"} <= set(metrics)


def test_digits_reach_their_accuracy(shipped, digits_archive):
    record = read_json(shipped.build("digits_resnet18", "1.0").training)
    assert record["metrics"]["accuracy"] >= 0.97
    assert len(record["data_sha256"]) == 64


def test_training_again_does_nothing_and_another_seed_does(recipe, folder):
    first = train(recipe, folder)
    assert first.done
    again = train(recipe, folder)
    assert not again.done
    assert again.record == first.record
    other = train(recipe, folder, seed=1)
    assert other.done
    assert other.why == "the seed was 0, now 1"
    assert other.record["weights_sha256"] != first.record["weights_sha256"]
    back = train(recipe, folder, seed=0)
    assert back.record["weights_sha256"] == first.record["weights_sha256"]


@pytest.mark.road
def test_a_killed_training_goes_on_and_ends_the_same(write_recipe, store, tmp_path):
    path = write_recipe(TRAINED)
    recipe = load_recipe(path)
    straight = train(recipe, store.build("tiny", "1.0"))
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "slow").touch()
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "torchport", "train", str(path), "--store", str(killed)]
    with subprocess.Popen([*command, "--cache", str(cache)]) as process:
        try:
            deadline = time.monotonic() + 300
            while not (cache / "step").exists() or int((cache / "step").read_text() or 0) < 5:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.01)
        finally:
            process.kill()
    folder = type(store)(killed).build("tiny", "1.0")
    assert folder.checkpoint.is_file()
    assert not folder.weights.exists()
    resumed = train(load_recipe(path, cache=cache), folder)
    assert resumed.record["weights_sha256"] == straight.record["weights_sha256"]
    assert resumed.record["assets"] == straight.record["assets"]
    assert not folder.checkpoint.exists()
    assert int((cache / "step").read_text()) == 29


def test_a_checkpoint_of_another_seed_is_left_alone(recipe, folder, monkeypatch):
    straight = train(recipe, folder, seed=3).record["weights_sha256"]
    monkeypatch.setattr(type(folder), "checkpoint", property(lambda self: self.path / "kept.pt"))
    train(recipe, folder, seed=2, force=True)
    buffer = io.BytesIO()
    torch.save({"key": "of another", "parts": {}}, buffer)
    folder.checkpoint.write_bytes(buffer.getvalue())
    assert train(recipe, folder, seed=3).record["weights_sha256"] == straight
    folder.checkpoint.write_bytes(b"damaged")
    assert train(recipe, folder, seed=3, force=True).record["weights_sha256"] == straight


def test_weights_that_are_given_take_the_place_of_training(write_recipe, folder, tmp_path):
    recipe = load_recipe(write_recipe())
    given = torch.nn.Linear(3, 2)
    torch.save(given.state_dict(), tmp_path / "given.pt")
    assert train(recipe, folder, weights=tmp_path / "given.pt").done
    assert not train(recipe, folder, weights=tmp_path / "given.pt").done
    assert torch.equal(trained_model(recipe, folder).weight, given.weight)


def _truncated(path):
    buffer = io.BytesIO()
    torch.save(torch.nn.Linear(3, 2).state_dict(), buffer)
    path.write_bytes(buffer.getvalue()[:200])


def _nan(path):
    torch.save({"weight": torch.full((2, 3), torch.nan), "bias": torch.zeros(2)}, path)


def _of_another_shape(path):
    torch.save(torch.nn.Linear(4, 2).state_dict(), path)


def _whole_module(path):
    torch.save(torch.nn.Linear(3, 2), path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_truncated, "truncated"),
        (_nan, "weight holds NaN or Inf"),
        (_of_another_shape, "does not fit Linear: size mismatch"),
        (_whole_module, "not a readable state_dict"),
        (lambda path: torch.save([1], path), "holds no state_dict"),
        (lambda path: torch.save({"weight": torch.eye(3).to_sparse()}, path), "state_dict"),
        (lambda path: None, "no weights file"),
    ],
)
def test_weights_that_cannot_be_used(write_recipe, folder, tmp_path, make, reason):
    path = tmp_path / "given.pt"
    make(path)
    with pytest.raises(TrainingError, match=reason):
        train(load_recipe(write_recipe()), folder, weights=path)
    assert not folder.weights.exists()


def test_weights_may_be_kept_when_the_recipe_changes(write_recipe, folder):
    path = write_recipe(TRAINED)
    train(load_recipe(path), folder)
    before = folder.weights.read_bytes()
    trained_by = read_json(folder.training)["inputs"]["sources"]
    assert not keep_weights(load_recipe(path), folder).done
    for comment in ("# one\n", "# two\n"):
        path.write_text(path.read_text() + comment)
        recipe = load_recipe(path)
        with pytest.raises(StaleError, match="--keep-weights"):
            trained_model(recipe, folder)
        result = keep_weights(recipe, folder)
        assert result.done
        assert result.record["trained_by"] == trained_by
        trained_model(recipe, folder)
        assert not train(recipe, folder).done
    assert folder.weights.read_bytes() == before


def test_weights_that_do_not_fit_or_are_not_there_are_not_kept(write_recipe, folder):
    recipe = load_recipe(write_recipe())
    with pytest.raises(TrainingError, match="no weights to keep"):
        keep_weights(recipe, folder)
    train(recipe, folder)
    wider = load_recipe(write_recipe(("nn.Linear(3, 2)", "nn.Linear(3, 3)")))
    record = read_json(folder.training)
    with pytest.raises(TrainingError, match=r"weight.*\[2, 3\]|size mismatch"):
        keep_weights(wider, folder)
    assert read_json(folder.training) == record
    folder.weights.write_bytes(b"other")
    with pytest.raises(TrainingError, match="not what training wrote"):
        keep_weights(wider, folder)


KEEPS_LITTLE = """class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.inner.gain = self.gain = 1.0
        self.table = {0: 0.0}
        self.register_buffer("offset", torch.zeros(2), persistent=False)

    def forward(self, x):
        return self.inner(x) * self.gain * self.inner.gain + self.offset + self.table[0]

class Tiny(Recipe):"""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("model.gain = 3.5", "the attribute gain = 3.5"),
        ("model.inner.gain = 3.5", "the attribute inner.gain = 3.5"),
        ("model.offset.fill_(2.0)", "the buffer 'offset', which is not persistent"),
        ("model.table[0] = 7.0", "something that is not in its state_dict"),
        ("model.inner = nn.Linear(3, 2, bias=False)", "do not fit what build"),
    ],
)
def test_what_training_leaves_outside_of_the_weights_is_an_error(write_recipe, folder, change, named):
    if "Linear" in change:
        change += "; model.inner.gain = 1.0"
    training = f"def train(self, model, run):\n        {change}\n\n    def samples(self):"
    path = write_recipe(
        ("class Tiny(Recipe):", KEEPS_LITTLE),
        ("return nn.Linear(3, 2)", "return Net()"),
        ("def samples(self):", training),
    )
    with pytest.raises(TrainingError, match=named):
        train(load_recipe(path), folder)
    assert not folder.weights.exists()


def test_training_that_ends_in_nan_loses_nothing(write_recipe, folder):
    good = train(load_recipe(write_recipe()), folder)
    bad = load_recipe(
        write_recipe(
            (
                "def samples(self):",
                """def train(self, model, run):
        with torch.no_grad():
            model.bias[0] = float("nan")
        return {}

    def samples(self):""",
            )
        )
    )
    with pytest.raises(TrainingError, match="bias holds NaN"):
        train(bad, folder)
    assert read_json(folder.training) == good.record


@pytest.mark.parametrize("returned", ["3", "[0.5]", '{"accuracy": "good"}'])
def test_metrics_are_names_and_numbers(write_recipe, folder, returned):
    source = TRAINED[1].replace('{"loss": 0.5}', returned)
    recipe = load_recipe(write_recipe((TRAINED[0], source)))
    with pytest.raises(TrainingError, match="expected metrics"):
        train(recipe, folder)


def test_an_error_in_train_names_its_line(write_recipe, folder):
    recipe = load_recipe(
        write_recipe(
            ("def samples(self):", "def train(self, model, run):\n        1 / 0\n\n    def samples(self):")
        )
    )
    with pytest.raises(TrainingError, match=r"tiny_recipe.py:\d+: train: ZeroDivisionError"):
        train(recipe, folder)


def test_weights_changed_after_training(recipe, folder):
    with pytest.raises(StaleError, match="not trained"):
        trained_model(recipe, folder)
    train(recipe, folder)
    content = bytearray(folder.weights.read_bytes())
    content[len(content) // 2] ^= 1
    folder.weights.write_bytes(content)
    with pytest.raises(StaleError, match="weights.pt has changed"):
        trained_model(recipe, folder)
    assert train(recipe, folder).why == "weights.pt is not what training wrote"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "nn.Linear(3, 2)",
            "nn.Linear(3, 5)",
            r"output 'y': got float32\[2, 5\], expected float32\[batch, 2\]",
        ),
        ("nn.Linear(3, 2)", "nn.Linear(4, 2)", "Linear on inputs x"),
        ("nn.Linear(3, 2)", "None", r"build\(\) gives NoneType"),
        ("standard_normal((4, 3))", "standard_normal((4, 5))", "sample 0 of graph 'main'"),
        ('"regressor"', '"broken"', r"broken.py:1: import: ModuleNotFoundError"),
    ],
)
def test_what_does_not_fit_is_found_before_training(write_recipe, folder, old, new, reason):
    path = write_recipe(TRAINED, (old, new))
    (path.parent / "broken.py").write_text("import nothere\n")
    with pytest.raises(TorchportError, match=reason):
        train(load_recipe(path), folder)
    assert not folder.checkpoint.exists()
    assert not (folder.path / "assets.new").exists()
