import hashlib
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from torchport.errors import ExportError, StaleError
from torchport.export.exporting import export
from torchport.export.guards import guarded_sizes
from torchport.export.program import capture
from torchport.export.traced_graph import TracedGraph
from torchport.recipe.inputs import example_inputs
from torchport.recipe.loading import load_recipe
from torchport.store.files import read_json
from torchport.train.training import train
from torchport_runtime import Signature, TensorSpec


def module(body: str, name: str = "nn.Linear(3, 2)") -> tuple[str, str]:
    """A change to the tiny recipe: a module of its own whose forward is `body`."""
    return (
        "class Tiny(Recipe):",
        f"""class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = {name}

    def forward(self, x):
{body}


class Tiny(Recipe):""",
    )


BUILD_NET = ("return nn.Linear(3, 2)", "return Net()")


def test_what_an_export_leaves(built):
    _, folder = built()
    record = read_json(folder.export)
    assert set(record["artifacts"]) == {"main.onnx", "main.pt", "main.pt2", "signature.json"}
    assert folder.require_artifacts() == {
        name: hashlib.sha256((folder.path / name).read_bytes()).hexdigest() for name in record["artifacts"]
    }
    graph = onnx.load(folder.path / "main.onnx").graph
    (x,), (y,) = graph.input, graph.output
    assert (x.name, y.name) == ("x", "y")
    assert x.type.tensor_type.shape.dim[0].dim_param == y.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert record["artifacts"]["main.onnx"]["opset"] >= 18


def test_no_path_of_this_machine_is_in_an_artifact(built, tmp_path):
    _, folder = built(module("        return self.inner(x)"), BUILD_NET)
    for name in ("main.onnx", "main.pt", "main.pt2"):
        content = (folder.path / name).read_bytes()
        if name != "main.onnx":
            with zipfile.ZipFile(folder.path / name) as archive:
                content += b"".join(archive.read(n) for n in archive.namelist())
        assert str(tmp_path).encode() not in content
        assert b"site-packages" not in content


def test_the_same_weights_give_the_same_bytes_in_another_process(built, write_recipe, tmp_path):
    _, folder = built()
    command = [sys.executable, "-m", "torchport"]
    for stage in ("train", "export"):
        subprocess.run(
            [*command, stage, str(write_recipe()), "--store", str(tmp_path / "other")],
            check=True,
            capture_output=True,
        )
    other = tmp_path / "other" / ".build" / "tiny" / "1.0"
    for name in ("main.onnx", "main.pt", "main.pt2", "signature.json", "weights.pt"):
        assert (other / name).read_bytes() == (folder.path / name).read_bytes(), name


def test_exporting_again_does_nothing_until_something_changes(built):
    recipe, folder = built()
    assert not export(recipe, folder).done
    (folder.path / "main.onnx").write_bytes(b"changed")
    again = export(recipe, folder)
    assert again.done
    assert "main.onnx has changed" in again.why
    train(recipe, folder, seed=7)
    assert export(recipe, folder).done


def test_nothing_is_exported_without_training(write_recipe, store):
    with pytest.raises(StaleError, match="not trained"):
        export(load_recipe(write_recipe()), store.build("tiny", "1.0"))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "        return self.inner(x) if x.sum() > 0 else self.inner(-x)",
            r"tiny_recipe.py:\d+: .*script it",
        ),
        ("        return self.inner(x) * float(x.shape[0])", r"tiny_recipe.py:\d+: a Python value is taken"),
        (
            "        return self.inner(x)[:, :1]",
            r"tiny_recipe.py: Net on inputs x \[2, 3\]: output 'y': got float32\[2, 1\]",
        ),
        ("        return self.inner(x).double()", r"got float64\[2, 2\], expected float32"),
        ("        return self.inner(x[:, :2])", r"tiny_recipe.py:\d+: Net on inputs"),
        ("        return self.inner(x), x", "returns 2 outputs"),
        ("        return self.inner(x)[:2]", r"(?s)'batch' came out fixed at 2|must equal"),
    ],
)
def test_what_cannot_be_exported_says_where_and_what_to_try(built, body, reason):
    with pytest.raises(ExportError, match=reason):
        built(module(body), BUILD_NET)


def test_a_folder_may_be_named_like_a_package_and_its_branches_are_refused_all_the_same(
    write_recipe, store, tmp_path
):
    folder = tmp_path / "torch"
    (folder / "nets").mkdir(parents=True)
    (folder / "nets" / "branching.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Linear):\n    def forward(self, x):\n"
        "        return super().forward(x if x.sum() > 0 else -x)\n"
    )
    path = folder / "tiny_recipe.py"
    path.write_text(
        write_recipe(
            ("import numpy as np\n", "import numpy as np\nfrom nets.branching import Net\n"),
            ("return nn.Linear(3, 2)", "return Net(3, 2)"),
            ("    inputs =", '    backends = ships = ("torchscript",)\n    inputs ='),
        ).read_text()
    )
    recipe, build = load_recipe(path), store.build("tiny", "1.0")
    train(recipe, build)
    with pytest.raises(ExportError, match=r"branching.py:6: a Python value is taken"):
        export(recipe, build)


def test_integers_without_bounds_are_a_likely_reason(built):
    lookup = (
        "        return nn.functional.embedding(x[:, :1].long().expand(-1, 2), self.inner.weight)[:, :, 0]"
    )
    with pytest.raises(ExportError, match=r"TensorSpec says so: low=0"):
        built(module(lookup), BUILD_NET, ('"float32", ("batch", 3)', '"int64", ("batch", 3)'))


def test_a_failed_export_leaves_the_old_artifacts(built, write_recipe):
    recipe, folder = built()
    before = (folder.path / "main.onnx").read_bytes()
    bad = load_recipe(
        write_recipe(module("        return self.inner(x) if x.sum() > 0 else -x[:, :2]"), BUILD_NET)
    )
    train(bad, folder)
    with pytest.raises(ExportError, match="nothing was written"):
        export(bad, folder)
    assert (folder.path / "main.onnx").read_bytes() == before


def test_a_branching_model_can_be_scripted(built):
    recipe, folder = built(
        module(
            """        if x.sum() > 0:
            return self.inner(x)
        return self.inner(-x)"""
        ),
        BUILD_NET,
        ("    inputs =", '    backends = ships = ("torchscript",)\n    torchscript = "script"\n    inputs ='),
    )
    assert set(folder.recorded_artifacts()) == {"main.pt", "signature.json"}


def test_tracing_inputs_have_every_dimension_at_two_or_more_and_apart():
    signature = Signature(
        inputs={"ids": TensorSpec("int64", ("batch", "time"), low=0, high=9)},
        outputs={"y": TensorSpec("float32", ("batch", "time"))},
        dims={"batch": (1, 8), "time": (1, 16)},
    )
    ids = example_inputs(signature)["ids"]
    assert min(ids.shape) >= 2
    assert ids.shape[0] != ids.shape[1]
    assert ids.min() >= 0
    assert ids.max() <= 9
    assert np.array_equal(ids, example_inputs(signature)["ids"])


class Sign(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))


def test_what_was_captured_before_does_not_restrict_a_program():
    """Not in a model of its own either: control flow is compiled, and kept, by dynamo."""
    recipe = load_recipe("linear")
    specs = {"fixed": (3, 3), "free": ("batch", "time")}
    for shape, size in ((specs["fixed"], {}), (specs["free"], {"batch": 4, "time": 7})):
        spec = TensorSpec("float32", shape)
        dims = dict.fromkeys(size, (1, 8))
        signature = Signature(inputs={"x": spec}, outputs={"y": spec}, dims=dims)
        inputs = {"x": np.ones(spec.resolve(size), np.float32)}
        program = capture(TracedGraph(recipe, Sign().eval(), signature, inputs))
    assert guarded_sizes(program, signature) == []
