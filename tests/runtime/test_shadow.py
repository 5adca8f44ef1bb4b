"""A second backend that looks at live traffic: what it picks, what it calls a disagreement, what it keeps."""

import json
import os
import shutil
import signal
import textwrap
import time
import zipfile

import numpy as np
import psutil
import pytest
import yaml

from tests.conftest import TINY, run_stages
from tests.server.shadows import assert_ends, stuck_artifact, wait_until_busy
from tests.server.waiting import PATIENCE_S, wait_until
from torchport.errors import RecipeError
from torchport.package.packaging import package
from torchport.recipe.loading import load_recipe
from torchport.store.folders import Store
from torchport_runtime import BackendOptions, Signature, TensorSpec
from torchport_runtime.backends.backend import open_backend
from torchport_runtime.errors import BackendError
from torchport_runtime.shadow import link as shadow_link
from torchport_runtime.shadow import shadow as shadow_module
from torchport_runtime.shadow.comparison import Allowed, compare
from torchport_runtime.shadow.cpu_budget import AT_ONCE_S, CpuBudget
from torchport_runtime.shadow.sampler import Sampler
from torchport_runtime.shadow.shadow import MAX_SAMPLES, Shadow
from torchport_runtime.shadow_options import MIN_SHARE, ShadowOptions

OPTIONS = {"backend": "torchscript", "fraction": 0.1}


def test_options_come_from_a_block_and_from_the_environment():
    options = BackendOptions.from_config({"shadow": OPTIONS})
    assert options.shadow == ShadowOptions(backend="torchscript", fraction=0.1)
    assert options.shadowed == BackendOptions(backend="torchscript", device="cpu", threads=1)
    assert BackendOptions(**options.to_json()) == options
    assert BackendOptions.from_config({"shadow": OPTIONS}, {"TORCHPORT_SHADOW": "off"}).shadow is None
    given = BackendOptions.from_config({}, {"TORCHPORT_SHADOW": "pt2=1"}).shadow
    assert given == ShadowOptions(backend="pt2", fraction=1.0)
    assert "shadow" not in BackendOptions().to_json()


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"backend": "torchscript"}, "shadow: fraction is missing"),
        ({"fraction": 0.1}, "shadow: backend is missing"),
        (OPTIONS | {"fraction": 0}, r"shadow.fraction 0: 1e-06 at least, and 1 \(all requests\) at most"),
        (OPTIONS | {"fraction": 5e-324}, "shadow.fraction 5e-324: 1e-06 at least"),
        ("torchscript=1e-300", "shadow.fraction 1e-300: 1e-06 at least"),
        (OPTIONS | {"fraction": 1.5}, "shadow.fraction 1.5"),
        (OPTIONS | {"fraction": "a lot"}, "shadow.fraction 'a lot'"),
        (OPTIONS | {"fraction": float("nan")}, "shadow.fraction nan"),
        (OPTIONS | {"share": 2}, "shadow.share 2: 0.0001 at least, and 1"),
        (OPTIONS | {"share": 1e-12}, "shadow.share 1e-12: 0.0001 at least"),
        (OPTIONS | {"threads": 10**6}, "shadow: threads 1000000: a whole number up to 1024"),
        (OPTIONS | {"backend": "torchscirpt"}, "shadow: backend 'torchscirpt': .*torchscript"),
        (OPTIONS | {"precision": "int8"}, "shadow: precision 'int8' with backend 'torchscript'"),
        (OPTIONS | {"fractoin": 1}, "shadow.fractoin is not known"),
        (OPTIONS | {"examples": 3}, "shadow.examples 3: the path of a folder"),
        (["torchscript", 0.1], r"shadow: \['torchscript', 0.1\], expected"),
        ("torchscript", "shadow 'torchscript': expected BACKEND=FRACTION"),
        ("torchscript=much", "expected BACKEND=FRACTION"),
    ],
)
def test_a_wrong_block_says_what_is_wrong(block, words):
    with pytest.raises(BackendError, match=words):
        BackendOptions.from_config({"shadow": block})


def test_a_shadow_of_the_backend_that_serves_is_none():
    assert BackendOptions(shadow={"backend": "onnxruntime", "fraction": 0.1}).shadowed is None
    watched = BackendOptions(precision="int8", shadow={"backend": "onnxruntime", "fraction": 0.1})
    assert watched.shadowed is not None
    by_gpu = BackendOptions(device="cuda", shadow={"backend": "onnxruntime", "fraction": 0.1})
    assert by_gpu.shadowed is not None


def test_what_the_file_says_of_its_own_backend_goes_with_it():
    config = {"backend": "onnxruntime", "io_binding": True}
    assert BackendOptions.from_config(config).io_binding is True
    assert BackendOptions.from_config(config, {"TORCHPORT_BACKEND": "torchscript"}).io_binding is None


SIGNATURE = Signature(
    inputs={"x": TensorSpec("float32", ("batch", 3))},
    outputs={"scores": TensorSpec("float32", ("batch", 3))},
)
LIMIT = Allowed(absolute={"scores": 0.1}, relative={"scores": 0.01})


def differ(first, second, allowed=LIMIT, signature=SIGNATURE):
    (name,) = signature.outputs
    dtype = signature.outputs[name].dtype
    return compare(signature, {name: np.array(first, dtype)}, {name: np.array(second, dtype)}, allowed)


def test_rounding_is_no_disagreement_and_more_is():
    found = differ([[1, 2, 3], [1, 2, 3]], [[1.05, 2, 3], [1, 2.5, 3]])
    assert (found.rows, found.disagreeing, found.worst) == (2, 1, 1)
    assert found.greatest == pytest.approx(0.5)


def test_the_limit_grows_with_a_rows_numbers():
    assert differ([[1000, 2000, 3000]], [[1000, 2000, 3020]]).disagreeing == 0
    assert differ([[1000, 2000, 3000]], [[1000, 2000, 3040]]).disagreeing == 1


def test_another_class_is_a_disagreement_unless_it_was_nearly_a_tie():
    nothing = Allowed()  # As of INT8: only decisions count.
    assert differ([[1, 2, 3]], [[1, 3.1, 3]], nothing).disagreeing == 1
    assert differ([[1, 2, 3]], [[0, 1, 9]], nothing).disagreeing == 0
    assert differ([[1, 2.95, 3]], [[1, 3.01, 3]]).disagreeing == 0


def test_nan_on_one_side_only_is_a_disagreement():
    nan = float("nan")
    assert differ([[1, nan, 3]], [[1, nan, 3]]).disagreeing == 0
    found = differ([[1, 2, 3]], [[1, nan, 3]], Allowed())
    assert (found.disagreeing, found.greatest) == (1, np.inf)


def test_the_sign_of_a_single_number_is_a_decision():
    single = Signature(
        inputs={"x": TensorSpec("float32", ("batch", 1))}, outputs={"y": TensorSpec("float32", ("batch", 1))}
    )
    assert differ([[0.5]], [[-0.5]], Allowed(), single).disagreeing == 1
    small = Allowed(absolute={"y": 0.1}, relative={"y": 0.01})
    assert differ([[0.01]], [[-0.01]], small, single).disagreeing == 0


def test_whole_numbers_must_be_equal_and_shapes_must_be_the_same():
    labels = Signature(
        inputs={"x": TensorSpec("float32", ("batch", 1))}, outputs={"y": TensorSpec("int64", ("batch", 2))}
    )
    assert differ([[1, 2], [3, 4]], [[1, 2], [3, 5]], Allowed(), labels).disagreeing == 1
    assert differ([[1, 2, 3], [1, 2, 3]], [[1, 2, 3]]).disagreeing == 2


@pytest.fixture(scope="module")
def proven(tmp_path_factory):
    """The tiny model, exported and proven: its recipe and its store."""
    folder = tmp_path_factory.mktemp("proven")
    (folder / "tiny_recipe.py").write_text(textwrap.dedent(TINY), encoding="utf-8")
    recipe, store = load_recipe(folder / "tiny_recipe.py"), Store(folder / "store")
    run_stages(recipe, store)
    return recipe, store


@pytest.fixture
def watched(proven, tmp_path):
    """A copy of its build folder, and a function that starts a shadow in it."""
    recipe, store = proven
    folder = tmp_path / "build"
    shutil.copytree(store.build(recipe.name, recipe.version).path, folder)
    started = []

    def start(fraction, **changes):
        # The whole of a processor, so that a machine that is busy does not make these tests wait.
        block = {"backend": "torchscript", "fraction": fraction, "share": 1, **changes}
        options = BackendOptions(device="cpu", threads=1, shadow=block)
        signature = recipe.signatures()["main"]
        shadow = Shadow(folder, {"main": signature}, options)
        started.append(shadow)
        return shadow, shadow.wrap("main", signature, open_backend(folder / "main.onnx", signature, options))

    yield folder, start
    for shadow in started:
        shadow.close()


class Metrics:
    """As much of TorchServe's as a handler's `context.metrics` needs."""

    def __init__(self):
        self.values = {}

    def add_counter(self, name, value):
        self.values[name] = self.values.get(name, 0) + value

    def add_metric(self, name, value, unit, dimensions, metric_type):
        assert [d.name for d in dimensions] == ["Worker"]
        assert metric_type == "gauge"
        self.values[name] = value


def reported(shadow, rows):
    """What has been reported once `rows` have been looked at or dropped."""
    metrics = Metrics()
    deadline = time.monotonic() + PATIENCE_S
    while metrics.values.get("ShadowRows", 0) + metrics.values.get("ShadowDrops", 0) < rows:
        assert time.monotonic() < deadline, metrics.values
        shadow.report(metrics)
        time.sleep(0.005)
    return metrics.values


def ask(backend, times, rows=1):
    for number in range(times):
        backend.run({"x": np.full((rows, 3), number, np.float32)})


def test_the_right_second_backend_agrees(watched):
    _, start = watched
    shadow, backend = start(1)
    ask(backend, 10)
    values = reported(shadow, 10)
    assert (values["ShadowRows"], values["ShadowDisagreements"], values["ShadowDrops"]) == (10, 0, 0)
    assert values["ShadowMaxDifference"] < 1e-5  # Ten epsilons of numbers up to 10.


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.3, 0.75, 1])
@pytest.mark.parametrize("rows", [1, 7])
def test_the_fraction_is_kept_in_every_stretch_of_rows(fraction, rows):
    sampler = Sampler(fraction)
    picked = []
    for start in range(0, 420, rows):
        taken = sampler.take(rows)
        assert all(0 <= place < rows for place in taken)
        picked += [start + place for place in taken]
    assert sorted(set(picked)) == picked
    # Every 1/fraction of rows has one: at the end one of them may be still to come.
    assert 420 * fraction - 1 <= len(picked) <= 420 * fraction + 1


def test_only_the_rows_that_are_picked_are_looked_at(watched):
    _, start = watched
    shadow, backend = start(0.1)
    ask(backend, 6, rows=10)
    assert reported(shadow, 5)["ShadowRows"] in (5, 6)


def wrong(folder):
    """Put another module where the TorchScript artifact was: its second output is off by a half."""
    import torch

    class Wrong(torch.nn.Module):
        def __init__(self, right):
            super().__init__()
            self.right = right

        def forward(self, x):
            return self.right(x) + torch.tensor([0.0, 0.5]) * (x[:, :1] > 4)

    right = torch.jit.load(str(folder / "main.pt"))
    torch.jit.save(torch.jit.script(Wrong(right)), str(folder / "main.pt"))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_wrong_second_backend_is_told_of_and_its_worst_example_is_kept(watched, tmp_path):
    folder, start = watched
    wrong(folder)
    kept = tmp_path / "examples"
    kept.mkdir()
    shadow, backend = start(1, examples=str(kept))
    ask(backend, 10)
    values = reported(shadow, 10)
    assert values["ShadowDisagreements"] == 5
    assert values["ShadowMaxDifference"] == pytest.approx(0.5, abs=1e-5)
    (example,) = kept.iterdir()
    with np.load(example, allow_pickle=False) as arrays:
        assert arrays["input.x"].shape == (1, 3)
        assert arrays["input.x"][0, 0] > 4
        assert arrays["second.y"][0, 1] - arrays["first.y"][0, 1] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_nothing_is_kept_unless_it_is_asked_for(watched, tmp_path):
    folder, start = watched
    wrong(folder)
    before = sorted(tmp_path.rglob("*"))
    shadow, backend = start(1)
    ask(backend, 10)
    assert reported(shadow, 10)["ShadowDisagreements"] == 5
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_too_much_is_dropped_and_counted(watched):
    _, start = watched
    shadow, backend = start(1)
    os.kill(shadow.pid, signal.SIGSTOP)
    ask(backend, MAX_SAMPLES + 20)
    os.kill(shadow.pid, signal.SIGCONT)
    values = reported(shadow, MAX_SAMPLES + 20)
    # One may be on its way already, beside those that wait.
    assert values["ShadowDrops"] in (19, 20)
    assert values["ShadowRows"] + values["ShadowDrops"] == MAX_SAMPLES + 20


def test_no_more_time_is_taken_than_the_share_allows():
    allowance = CpuBudget(0.01)
    assert allowance.wait_s() == 0
    allowance.spend(AT_ONCE_S + 0.02)
    # What was taken too much has to come in at a hundredth of the time that passes: two seconds.
    assert 1.5 < allowance.wait_s() <= 2


def test_serving_goes_on_without_the_second_process(watched):
    _, start = watched
    shadow, backend = start(1)
    os.kill(shadow.pid, signal.SIGKILL)
    ask(backend, 5)
    assert reported(shadow, 5)["ShadowDrops"] == 5
    assert backend.run({"x": np.zeros((1, 3), np.float32)})["y"].shape == (1, 2)


def test_a_model_that_goes_takes_its_shadow_with_it(watched):
    _, start = watched
    shadow, backend = start(1)
    ask(backend, 3)
    process = psutil.Process(shadow.pid)
    shadow.close()
    assert_ends(process)
    assert backend.run({"x": np.zeros((1, 3), np.float32)})["y"].shape == (1, 2)


@pytest.fixture
def stuck(watched, monkeypatch):
    """A function that starts a shadow which is stuck in its second backend for what is above 100."""
    folder, start = watched
    (folder / "main.pt").write_bytes(stuck_artifact())

    def start_stuck(
        processor_s=shadow_module.COMPARE_PROCESSOR_S, compare_limit_s=shadow_link.COMPARE_LIMIT_S
    ):
        monkeypatch.setattr(shadow_module, "COMPARE_PROCESSOR_S", processor_s)
        monkeypatch.setattr(shadow_link, "COMPARE_LIMIT_S", compare_limit_s)
        monkeypatch.setattr(shadow_module, "RESTART_AFTER_S", 0.1)
        return start(1)

    return start_stuck


ABOVE = np.full((1, 3), 1000, np.float32)


def test_a_model_that_goes_takes_a_stuck_shadow_with_it(stuck):
    shadow, backend = stuck()
    process = psutil.Process(shadow.pid)
    backend.run({"x": ABOVE})
    wait_until_busy(process)
    shadow.close()
    assert_ends(process)


def test_a_look_without_an_end_is_ended_counted_and_the_process_started_again(stuck, caplog):
    shadow, backend = stuck(processor_s=0.5)
    process = psutil.Process(shadow.pid)
    backend.run({"x": ABOVE})
    assert reported(shadow, 1)["ShadowDrops"] == 1
    assert_ends(process)
    wait_until(lambda: "is started again" in caplog.text)
    assert "1 rows of graph main: more than 0.5 s of processor time: its process was ended" in caplog.text
    # What comes while it rests is dropped; then there is another process, which answers as the first did.
    wait_until(lambda: ask(backend, 1) or reported(shadow, 1).get("ShadowRows"))
    assert shadow.pid not in (0, process.pid)


@pytest.mark.parametrize("rows", [1, 1_000_000])
def test_a_look_that_waits_for_ever_has_an_end_too(stuck, caplog, rows):
    """Whether it waits for the answer, or for a large sample to be taken at all."""
    shadow, backend = stuck(compare_limit_s=1)
    process = psutil.Process(shadow.pid)
    process.suspend()
    ask(backend, 1, rows)
    assert reported(shadow, rows)["ShadowDrops"] == rows
    assert_ends(process)
    wait_until(lambda: "is started again" in caplog.text)
    assert f"{rows} rows of graph main: no r" in caplog.text


def test_nothing_waits_for_a_turn_that_is_far_away(watched):
    _, start = watched
    shadow, backend = start(1, share=MIN_SHARE)
    process = psutil.Process(shadow.pid)
    process.suspend()
    began = time.monotonic()
    ask(backend, 1)
    # What is above AT_ONCE_S has to come in again, at the least share: a quarter of an hour at least.
    wait_until(lambda: time.monotonic() - began > AT_ONCE_S + 0.1)
    process.resume()
    assert reported(shadow, 1)["ShadowRows"] == 1
    ask(backend, 5)
    assert reported(shadow, 5)["ShadowDrops"] == 5
    shadow.close()
    assert_ends(process)


def test_what_goes_wrong_in_the_shadow_is_told_and_its_rows_are_counted(watched, caplog):
    _, start = watched
    shadow, backend = start(1)
    process = psutil.Process(shadow.pid)
    # Nothing that can be sent to another process.
    shadow.enqueue(("main", {"x": np.array([lambda: 0])}, {}), 3)
    assert reported(shadow, 3)["ShadowDrops"] == 3
    assert_ends(process)
    ask(backend, 2)
    assert reported(shadow, 2)["ShadowDrops"] == 2
    assert "off until this worker restarts" in caplog.text
    assert "lambda" in caplog.text


def test_counters_are_at_zero_from_the_first_report(watched):
    _, start = watched
    shadow, _ = start(1)
    assert shadow.has_news
    metrics = Metrics()
    shadow.report(metrics)
    assert metrics.values == {"ShadowRows": 0, "ShadowDisagreements": 0, "ShadowDrops": 0}
    assert not shadow.has_news


def test_what_cannot_be_loaded_is_refused_at_the_start(watched):
    folder, start = watched
    (folder / "main.pt").unlink()
    with pytest.raises(BackendError, match=r"shadow: backend 'torchscript' needs main.pt"):
        start(0.5)
    with pytest.raises(BackendError, match=r"shadow.examples '/nowhere/at/all' is no folder"):
        start(0.5, examples="/nowhere/at/all")


def test_bounds_come_from_the_certificate(watched):
    folder, _ = watched
    allowed = Allowed.of_certificate(folder / "parity.json", "main", ["onnxruntime", "torchscript"])
    rows = [
        row
        for result in json.loads((folder / "parity.json").read_text())["results"]
        for row in result["comparisons"]
        if row["case"].startswith("sample") and result["backend"] != "pt2"
    ]
    assert allowed.absolute == {"y": 2 * max(row["bound"] for row in rows)}
    assert Allowed.of_certificate(folder / "nothing.json", "main", ["onnxruntime"]) == Allowed()


def test_package_refuses_a_shadow_that_the_archive_does_not_carry(proven):
    recipe, store = proven
    with pytest.raises(RecipeError, match="shadow 'pt2' is not among the backends that the archive carries"):
        package(recipe, store, shadow="pt2=0.1")
    plain = package(recipe, store)
    watching = package(recipe, store, shadow="torchscript=0.1")
    assert watching.sha256 != plain.sha256
    with zipfile.ZipFile(watching.path) as archive:
        config = yaml.safe_load(archive.read("model-config.yaml"))
    assert config["torchport"]["shadow"] == OPTIONS
    assert package(recipe, store, shadow="off").sha256 == plain.sha256
