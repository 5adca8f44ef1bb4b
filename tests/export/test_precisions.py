"""Half precisions down the whole road: made, proven or refused, carried, chosen, and proven again."""

import io
import json
import textwrap
import warnings

import numpy as np
import pytest
import torch

from tests.conftest import TINY
from torchport.archive.contents import inspect_archive
from torchport.archive.local_record import require_local_parity
from torchport.archive.model import load
from torchport.errors import ArchiveError, ExportError, RecipeError
from torchport.export.exporting import export
from torchport.package.packaging import package
from torchport.recipe.loading import load_recipe
from torchport.store.folders import Store
from torchport.store.hashing import sha256_bytes
from torchport.train.training import train
from torchport.verify.evidence import FILE, read_evidence
from torchport.verify.local.proving import verify_archive
from torchport.verify.outputs.rms_error import TypicalError
from torchport.verify.verifying import verify
from torchport_runtime import BackendError, BackendOptions
from torchport_runtime.backends.backend import open_backend

BOTH = 'precisions = ("float32", "float16", "bfloat16")'
NAME = 'name, version, handler = "tiny", "1.0", "regressor"'
LINEAR = "        return nn.Linear(3, 2)"
NETWORK = "        return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))"


def attribute(*lines):
    return NAME, "\n    ".join([NAME, *lines])


def edit(folder, name, change):
    """Change an artifact as if it had been exported so."""
    content = change((folder.path / name).read_bytes())
    (folder.path / name).write_bytes(content)
    record = json.loads(folder.export.read_text())
    record["artifacts"][name]["sha256"] = sha256_bytes(content)
    folder.export.write_text(json.dumps(record))


@pytest.fixture(scope="module")
def shipped_in_half(tmp_path_factory):
    """A store with the archive of a small network in every precision; recipe, store, certificate."""
    folder = tmp_path_factory.mktemp("half")
    source = textwrap.dedent(TINY).replace(*attribute(BOTH)).replace(LINEAR, NETWORK)
    (folder / "tiny_recipe.py").write_text(source)
    recipe, store = load_recipe(folder / "tiny_recipe.py"), Store(folder / "store")
    build = store.build("tiny", "1.0")
    train(recipe, build)
    export(recipe, build)
    result = verify(recipe, build)
    assert not result.failures
    package(recipe, store)
    return recipe, store, result.certificate


HALVES = [
    ("onnxruntime", "float16"),
    ("torchscript", "float16"),
    ("torchscript", "bfloat16"),
    ("pt2", "float16"),
    ("pt2", "bfloat16"),
]


def test_every_backend_and_precision_has_its_own_result(shipped_in_half):
    _, _, certificate = shipped_in_half
    found = {(r["backend"], r.get("precision", "float32")): r for r in certificate["results"]}
    assert set(found) == {*((b, "float32") for b in ("onnxruntime", "torchscript", "pt2")), *HALVES}
    for (_, precision), result in found.items():
        assert result["passed"]
        assert result["decisions"]["compared"] + result["decisions"]["ties"] > 0
        if precision != "float32":
            assert result["bound"] == {
                "eager_multiple": 10,
                "scale_epsilons": 16,
                "epsilon": float(torch.finfo(getattr(torch, precision)).eps),
            }
            # It was computed in half precision, and not in float32 under another name: float32 is a
            # hundred times nearer.
            assert result["typical_error"]["y"]["error"] > 1e-5
    # Beyond 65504 float16 has no numbers, and the case "millions" of parity has.
    assert found["torchscript", "float16"]["beyond_range"] > 0
    assert found["torchscript", "bfloat16"]["beyond_range"] == 0


@pytest.mark.parametrize(("backend", "precision"), [half for half in HALVES if half[0] != "pt2"])
def test_the_archive_computes_in_the_precision_that_is_asked_for(shipped_in_half, backend, precision):
    recipe, store, _ = shipped_in_half
    archive = store.archive("tiny", "1.0")
    x = {"x": np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)}
    with (
        load(archive, backend=backend, precision=precision, device="cpu") as half,
        load(archive, backend=backend, device="cpu") as full,
    ):
        ours, theirs = half.run("main", x)["y"], full.run("main", x)["y"]
    assert ours.dtype == np.float32
    epsilon = float(torch.finfo(getattr(torch, precision)).eps)
    # Three roundings of values near 1, each by at most half an epsilon, weigh up to a few together.
    assert 0 < np.abs(ours - theirs).max() < 8 * epsilon
    if backend == "torchscript":  # All of it is computed in half: what comes out has no more bits.
        assert np.array_equal(ours, torch.from_numpy(ours).to(getattr(torch, precision)).float().numpy())


def test_the_environment_and_the_config_choose(shipped_in_half, monkeypatch, tmp_path):
    recipe, store, _ = shipped_in_half
    archive = store.archive("tiny", "1.0")
    monkeypatch.setenv("TORCHPORT_PRECISION", "float16")
    with load(archive, device="cpu") as model:
        assert model.options.precision == "float16"
    monkeypatch.delenv("TORCHPORT_PRECISION")
    package(recipe, store, precision="float16")
    try:
        assert inspect_archive(archive).problems == ()
        with load(archive, device="cpu") as model:
            assert model.options.precision == "float16"
            assert isinstance(model.predict([1.0, 2.0, 3.0]), list)
    finally:
        package(recipe, store)


def test_it_is_proven_again_by_the_precisions_own_bounds(shipped_in_half):
    recipe, store, _ = shipped_in_half
    archive = store.archive("tiny", "1.0")
    record = verify_archive(archive).record
    proven = {(r["backend"], r.get("precision", "float32")) for r in record["results"] if r["passed"]}
    ships = ("onnxruntime", "torchscript")
    assert proven == {*((b, "float32") for b in ships), *(h for h in HALVES if h[0] in ships)}
    require_local_parity(archive, "torchscript", "bfloat16")
    with pytest.raises(ArchiveError, match="onnxruntime bfloat16 was not run"):
        require_local_parity(archive, "onnxruntime", "bfloat16")
    cases = read_evidence(store.build("tiny", "1.0").path / FILE).cases
    sample = {case.precision: case for case in cases if case.name == "sample 0"}
    assert sample["bfloat16"].bounds["y"] > sample["float16"].bounds["y"] > sample["float32"].bounds["y"]
    assert not [c for c in cases if c.precision == "float16" and c.name == "millions"]


def test_a_small_defect_of_a_half_graph_is_no_rounding(built):
    """A bias that is off by a few per cent lies within bfloat16's bound on the greatest error."""
    recipe, folder = built(attribute(BOTH), (LINEAR, NETWORK))
    name = "main.bfloat16.pt"

    def move(content):
        module = torch.jit.load(io.BytesIO(content))

        class Off(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = module

            def forward(self, x):
                return self.model(x) + 0.03

        buffer = io.BytesIO()
        torch.jit.save(torch.jit.trace(Off().eval(), torch.zeros(2, 3)), buffer)
        return buffer.getvalue()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises torch.export instead of TorchScript.
        edit(folder, name, move)
    failures = verify(recipe, folder).failures
    assert failures
    assert all("torchscript bfloat16" in failure for failure in failures)
    assert any("this is not rounding" in failure for failure in failures)


def test_a_float32_graph_under_a_half_name_changes_nothing_that_is_bound(shipped_in_half):
    """The options say the precision, so an archive's config cannot be turned without its certificate."""
    _, _, certificate = shipped_in_half
    options = certificate["binding"]["options"]
    assert options["torchscript bfloat16"]["precision"] == "bfloat16"
    assert options["torchscript"] == {"tf32": False}


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (['precisions = ("bfloat16",)'], "'float32' comes first"),
        (['precisions = ("float32", "float61")'], "did you mean 'float16'"),
        (['precisions = ("float32", "int8")'], "torchport quantize makes it"),
        (
            ['precisions = ("float32", "bfloat16")', 'backends = ships = ("onnxruntime",)'],
            "computes in bfloat16",
        ),
        (['optional_precisions = ("float16",)'], "is to be one of precisions"),
        (['precisions = "float16"'], "a tuple of names"),
    ],
)
def test_wrong_precisions_say_what_is_right(write_recipe, lines, reason):
    with pytest.raises(RecipeError, match=reason):
        load_recipe(write_recipe(attribute(*lines)))


def test_bfloat16_is_refused_where_there_are_no_kernels():
    with pytest.raises(BackendError, match="ONNX Runtime has not the kernels for it"):
        BackendOptions(precision="bfloat16")
    assert BackendOptions(backend="pt2", precision="bfloat16").artifact_suffix == ".bfloat16.pt2"


FACTORISED = """
        class Solves(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(3, 2)

            def forward(self, x):
                return self.linear(x) * torch.linalg.det(torch.eye(2, dtype=x.dtype))

        return Solves()
"""

BRANCHING = """
        class Branches(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(3, 2)

            def forward(self, x):
                y = self.linear(x)
                if bool(y.sum() > 0):
                    y = y * 2
                return y

        return Branches()
"""


def test_what_does_not_run_in_half_is_refused_or_told(built, store):
    """There is no determinant in half precision."""
    change = (LINEAR, FACTORISED)
    half = 'precisions = ("float32", "float16")'
    with pytest.raises(ExportError, match="does not run in float16 on this machine's CPU"):
        built(attribute(half), change)
    recipe, folder = built(attribute(half, 'optional_precisions = ("float16",)'), change)
    result = verify(recipe, folder)
    assert not result.failures
    assert "does not run in float16" in result.certificate["not_exported"]["torchscript float16"]
    path = package(recipe, store).path
    assert not [entry for entry in inspect_archive(path).entries if "float16" in entry.name]
    with pytest.raises(ArchiveError, match="does not run in float16"):
        package(recipe, store, precision="float16")


def test_a_model_that_leaves_float16s_range_on_real_inputs(built, store):
    large = (".astype(np.float32)}", ".astype(np.float32) * 1e6}")
    half = 'precisions = ("float32", "float16", "bfloat16")'
    recipe, folder = built(attribute(half), large)
    failures = verify(recipe, folder).failures
    assert failures
    assert all("float16 on cpu" in f and "bfloat16 on" not in f for f in failures), failures
    assert any("leaves its range on a real input" in f for f in failures)

    recipe, folder = built(attribute(half, 'optional_precisions = ("float16",)'), large)
    result = verify(recipe, folder)
    assert not result.failures
    assert result.certificate["optional_failures"]
    names = {entry.name for entry in inspect_archive(package(recipe, store).path).entries}
    assert "main.bfloat16.pt" in names
    assert "main.float16.pt" not in names
    with pytest.raises(ArchiveError, match="'onnxruntime float16' did not pass parity"):
        package(recipe, store, precision="float16")


def test_scripted_models_keep_their_branches_in_half(built):
    recipe, folder = built(
        attribute(
            'precisions = ("float32", "bfloat16")',
            'torchscript, backends = "script", ("torchscript",)',
            'ships = ("torchscript",)',
        ),
        (LINEAR, BRANCHING),
    )
    (signature,) = recipe.signatures().values()
    half = BackendOptions(backend="torchscript", device="cpu", precision="bfloat16")
    full = BackendOptions(backend="torchscript", device="cpu")
    backends = [
        open_backend(folder.path / name, signature, options)
        for name, options in (("main.bfloat16.pt", half), ("main.pt", full))
    ]
    signs = set()
    for seed in range(8):
        x = {"x": np.random.default_rng(seed).standard_normal((1, 3)).astype(np.float32)}
        ours, theirs = (backend.run(x)["y"] for backend in backends)
        signs.add(bool(theirs.sum() > 0))
        # A branch that was frozen would be off by a factor of 2.
        np.testing.assert_allclose(ours, theirs, atol=0.05)
    assert signs == {True, False}


def test_typical_errors_tell_rounding_from_a_defect():
    generator = np.random.default_rng(0)
    typical = TypicalError(2**-7)
    for _ in range(20):
        truth = generator.standard_normal(100)
        eager = truth * (1 + generator.uniform(-1, 1, 100) * 2**-8)
        typical.add("rounded", truth * (1 + generator.uniform(-1, 1, 100) * 2**-8), eager, truth)
        typical.add("moved", eager + 0.05, eager, truth)
    (problem,) = typical.problems()
    assert "'moved'" in problem
