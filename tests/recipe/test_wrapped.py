"""Models that nobody here wrote: their signature from a description, their road from the command line."""

import io

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import torchport
from tests import warm_processes
from tests.conftest import ROOT
from torchport.errors import RecipeError, TrainingError
from torchport.model.weights import load_weights
from torchport.recipe.loading import load_recipe
from torchport.recipe.probing import parse_dim, parse_input, probe
from torchport_runtime import TensorSpec, write_arrays

REPO = str(ROOT / "tests" / "example_repo")
PAIR = {
    "repo": REPO,
    "entry": "pair_encoder",
    "source": "local",
    "input": ["left:int64:batch,time:0..99", "right:int64:batch,time:0..99"],
    "dim": ["time:1,32"],
}
PICTURES = {
    "repo": REPO,
    "entry": "segmenter",
    "source": "local",
    "input": ["image:float32:batch,3,height,width"],
    "dim": ["height:8,64", "width:8,64"],
}


def test_two_token_inputs_and_a_vector():
    signature = load_recipe("hub", PAIR).signatures()["main"]
    assert signature.inputs["left"] == TensorSpec("int64", ("batch", "time"), low=0.0, high=99.0)
    assert dict(signature.outputs) == {"output": TensorSpec("float32", ("batch", 384))}
    assert dict(signature.dims) == {"batch": (1, 16), "time": (1, 32)}


def test_a_fully_convolutional_network_with_two_outputs():
    signature = load_recipe("hub", PICTURES).signatures()["main"]
    assert signature.outputs["edges"].shape == ("batch", 1, "height", "width")
    assert signature.outputs["classes"].shape == ("batch", 5, "classes_2", "classes_3")
    assert signature.dims["classes_2"] == (4, 32)


def test_outputs_get_the_names_that_are_given():
    class Two(nn.Module):
        def forward(self, x):
            return x.sum(1), x.argmax(1)

    inputs = {"x": TensorSpec("float32", ("batch", 4))}
    signature = probe(Two(), inputs, {}, ["total", "best"])
    assert signature.outputs["total"] == TensorSpec("float32", ("batch",))
    assert signature.outputs["best"].dtype == "int64"
    assert list(probe(Two(), inputs, {}).outputs) == ["output_0", "output_1"]
    with pytest.raises(RecipeError, match="1 output names for 2 outputs"):
        probe(Two(), inputs, {}, ["total"])


@pytest.mark.parametrize(
    ("recipe", "given", "reason"),
    [
        ("hub", PAIR | {"source": "gitlab"}, "github or local"),
        ("hub", PAIR | {"source": "github"}, "--trust-repo"),
        ("hub", PAIR | {"repo": "nowhere"}, "no hubconf.py"),
        ("hub", PAIR | {"entry": "pair_encoders"}, "entry 'pair_encoders'"),
        ("hub", PAIR | {"argument": ["width"]}, "name=value is expected"),
        ("hub", PAIR | {"argument": ["widht=3"]}, "widht"),
        ("hub", PAIR | {"dim": []}, "'time' has no bounds.*--dim"),
        ("hub", PAIR | {"dim": ["time:1"]}, "name:least,greatest"),
        (
            "hub",
            PAIR | {"input": ["left:int64:batch,time:0..99"]},
            "PairEncoder on inputs left int64.*forward",
        ),
        ("hub", PAIR | {"input": ["left:int65:batch"]}, "did you mean 'int64'"),
        ("hub", PAIR | {"input": ["left"]}, "name:dtype:dims is expected"),
        ("pretrained", {"model": "torchvision.models", "input": ["x:float32:batch"]}, "module:callable"),
        ("pretrained", {"model": "no.such:thing", "input": ["x:float32:batch"]}, "is it installed"),
        ("pretrained", {"model": "torch.nn:Lineer", "input": ["x:float32:batch"]}, "Lineer"),
        (
            "pretrained",
            {"model": "os:getcwd", "input": ["x:float32:batch"]},
            "gives str, expected an nn.Module",
        ),
    ],
)
def test_what_is_wrong_is_told(recipe, given, reason):
    with pytest.raises(RecipeError, match=reason):
        load_recipe(recipe, given)


def test_descriptions():
    assert parse_input("x:float32:batch,4:-1..1.5") == (
        "x",
        TensorSpec("float32", ("batch", 4), low=-1.0, high=1.5),
    )
    assert parse_input("mask:bool:batch,time=true")[1] == TensorSpec("bool", ("batch", "time"), default=True)
    assert parse_input("h:float32:batch,4:-1..1=0")[1].default == 0
    with pytest.raises(RecipeError, match="after ="):
        parse_input("mask:bool:batch,time=yes")
    assert parse_dim("time:1,512") == ("time", (1, 512))


def command(*arguments, cwd):
    done = warm_processes.torchport(*arguments, cwd=cwd)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.road
def test_from_the_command_line_by_stages_and_by_the_models_name(tmp_path):
    torch.manual_seed(1)
    weights = nn.Linear(4, 3).state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    store = ["--store", str(tmp_path / "store")]
    description = [
        "--model",
        "torch.nn:Linear",
        "--argument",
        "in_features=4",
        "--argument",
        "out_features=3",
    ]
    description += ["--input", "x:float32:batch,4", "--name", "line"]
    code, said = command(
        "train", "pretrained", *description, "--weights", "w.safetensors", *store, cwd=tmp_path
    )
    assert code == 0, said
    # Later stages know it by its name, with the parameters that it was made with.
    for stage in ("export", "verify", "package"):
        code, said = command(stage, "line", *store, cwd=tmp_path)
        assert code == 0, said
    code, said = command("train", "line", *store, cwd=tmp_path)
    assert code == 0, said
    assert "unchanged" in said
    code, said = command("list", *store, cwd=tmp_path)
    assert "Any module:callable with given weights" in said
    assert "needs --model, --input" in said
    with torchport.load(tmp_path / "store" / "line-1.0.mar") as model:
        x = np.ones((2, 4), np.float32)
        expected = x @ weights["weight"].numpy().T + weights["bias"].numpy()
        np.testing.assert_allclose(model.predict(x.tolist()), expected, rtol=1e-6)
        loaded = np.load(io.BytesIO(model.predict(write_arrays({"x": x}, "npz"))))
        np.testing.assert_allclose(loaded["output"], expected, rtol=1e-6)


def test_a_mistyped_option_of_the_command_is_told(tmp_path):
    code, said = command("train", "linear", "--sede", "3", cwd=tmp_path)
    assert code == 2
    assert "no parameter 'sede'" in said
    assert "--seed" in said
    code, said = command("train", "--epochs", "3", "linear", cwd=tmp_path)
    assert code == 2
    assert "name it first" in said


@pytest.mark.road
def test_weights_that_nobody_gave_are_said_to_be_so(tmp_path):
    description = [
        "--model",
        "torch.nn:Linear",
        "--argument",
        "in_features=4",
        "--argument",
        "out_features=3",
    ]
    description += ["--input", "x:float32:batch,4", "--store", str(tmp_path)]
    code, said = command("train", "pretrained", *description, cwd=tmp_path)
    assert code == 0
    assert "no training and no --weights: as build() gives it, seed 0" in said
    # The same name and version by another recipe is not put in its place unasked.
    linear = (ROOT / "export" / "linear.py").read_text().replace('"linear"', '"Linear"')
    (tmp_path / "mine.py").write_text(linear)
    code, said = command("train", "mine.py", "--store", str(tmp_path), cwd=tmp_path)
    assert code == 2
    assert "was made by pretrained.py" in said


def test_the_code_of_one_repository_is_never_taken_for_anothers(tmp_path):
    for name, function in (("one", "relu"), ("two", "sigmoid")):
        repo = tmp_path / name
        repo.mkdir()
        (repo / "net.py").write_text(
            "import torch\nclass Net(torch.nn.Module):\n"
            f"    def forward(self, x):\n        return torch.{function}(x)\n"
        )
        (repo / "hubconf.py").write_text("from net import Net\ndef tiny():\n    return Net()\n")
    x = torch.tensor([[-1.0, 1.0]])
    given = {"entry": "tiny", "source": "local", "input": ["x:float32:batch,2"]}
    one, two, again = (load_recipe("hub", given | {"repo": str(tmp_path / n)}) for n in ("one", "two", "one"))
    for recipe, expected in ((one, x.relu()), (two, x.sigmoid()), (again, x.relu()), (two, x.sigmoid())):
        assert torch.equal(recipe.build()(x), expected)
    assert one.sources == again.sources != two.sources


def test_what_a_module_here_imports_is_among_the_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_layers.py").write_text("SCALE = 2.0\n")
    (tmp_path / "my_net.py").write_text(
        "import torch\nfrom my_layers import SCALE\nclass Net(torch.nn.Module):\n"
        "    def forward(self, x):\n        return x * SCALE\n"
    )
    np.savez(tmp_path / "sample.npz", x=np.ones((8, 2), np.float32))
    given = {"model": "my_net:Net", "input": ["x:float32:batch,2"], "sample": "sample.npz"}
    before = load_recipe("pretrained", given).sources
    assert load_recipe("pretrained", given).sources == before
    (tmp_path / "my_layers.py").write_text("SCALE = 5.00\n")
    changed = load_recipe("pretrained", given)
    assert changed.sources != before
    assert changed.build()(torch.ones(1, 1)).item() == 5
    np.savez(tmp_path / "sample.npz", x=np.zeros((8, 2), np.float32))
    assert load_recipe("pretrained", given).sources != changed.sources


def test_weights_in_other_wrappings(tmp_path):
    given = nn.Linear(3, 2)
    for index, state in enumerate(
        (
            {"state_dict": given.state_dict(), "epoch": 3},
            {f"module.{name}": tensor for name, tensor in given.state_dict().items()},
        )
    ):
        path = tmp_path / f"{index}.pt"
        torch.save(state, path)
        model = nn.Linear(3, 2)
        load_weights(model, path)
        assert torch.equal(model.weight, given.weight)
    two = {"model": given.state_dict(), "state_dict": given.state_dict()}
    beside = {"model": given.state_dict(), **given.state_dict()}
    quantised = {name: (tensor * 127).round().to(torch.int8) for name, tensor in given.state_dict().items()}
    for state, reason in (
        (two, "state_dict and model"),
        (beside, "beside 'model'"),
        (quantised, "is torch.int8"),
    ):
        torch.save(state, tmp_path / "wrong.pt")
        with pytest.raises(TrainingError, match=reason):
            load_weights(nn.Linear(3, 2), tmp_path / "wrong.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"not one")
    with pytest.raises(TrainingError, match="not a readable safetensors"):
        load_weights(nn.Linear(3, 2), tmp_path / "bad.safetensors")


@pytest.mark.road
def test_a_backend_that_may_fail_is_written_down(write_recipe, store):
    from torchport.export.exporting import export
    from torchport.package.packaging import package
    from torchport.train.training import train
    from torchport.verify.verifying import verify

    branching = (
        "return nn.Linear(3, 2)",
        """class Branch(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(3, 2)

            def forward(self, x):
                y = self.layer(x)
                return y if self.layer.weight.sum() > 9 else -y

        return Branch()""",
    )
    settings = (
        "inputs =",
        "torchscript, ships = 'script', ('torchscript',)\n"
        "    optional_backends = ('onnxruntime', 'pt2')\n    inputs =",
    )
    recipe = load_recipe(write_recipe(branching, settings))
    folder = store.build("tiny", "1.0")
    train(recipe, folder)
    failed = export(recipe, folder).record["failed"]
    assert set(failed) == {"onnxruntime", "pt2"}
    assert "tiny_recipe.py:" in failed["pt2"]
    result = verify(recipe, folder)
    assert not result.failures
    assert {r["backend"] for r in result.certificate["results"]} == {"torchscript"}
    assert set(result.certificate["not_exported"]) == {"onnxruntime", "pt2"}
    assert package(recipe, store).done
    with pytest.raises(RecipeError, match="'pt2' is not among those"):
        package(recipe, store, backends=["pt2"])
