"""Parity must say no to what differs and yes to what does not."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.artifact_edits import change_onnx, refresh_hash, scale_weight
from tests.export.test_export import BUILD_NET, module
from torchport.errors import StaleError
from torchport.recipe.loading import load_recipe
from torchport.store.files import read_json
from torchport.verify.verifying import verify


def test_a_correct_model_passes_and_passes_again_without_work(built):
    recipe, folder = built()
    first = verify(recipe, folder)
    assert first.done
    assert first.failures == []
    certificate = read_json(folder.parity)
    assert certificate["passed"]
    assert certificate["reference"] == {"main": "float64"}
    assert {r["backend"] for r in certificate["results"]} == {"onnxruntime", "torchscript", "pt2"}
    cases = {row["case"] for row in certificate["results"][0]["comparisons"]}
    assert {"sample 0", "batch=1", "batch=3", "batch=33", "batch=64", "seed 3", "large"} <= cases
    assert "sample 0, row by row" in cases
    again = verify(recipe, folder)
    assert not again.done
    assert again.certificate == certificate


def test_the_certificate_holds_no_clock_host_or_path(built, tmp_path):
    recipe, folder = built()
    verify(recipe, folder)
    first = folder.parity.read_bytes()
    verify(recipe, folder, force=True)
    assert folder.parity.read_bytes() == first
    assert str(tmp_path).encode() not in first


@pytest.mark.parametrize("name", ["main.onnx", "main.pt", "main.pt2", "signature.json", "weights.pt"])
def test_any_changed_byte_is_named(built, name):
    recipe, folder = built()
    verify(recipe, folder)
    path = folder.path / name
    content = bytearray(path.read_bytes())
    for at in (0, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(StaleError, match=name) as caught:
            verify(recipe, folder)
        assert caught.value.exit_code == 1


@pytest.mark.parametrize("factor", [1.01, 1.001, 1.00001])
def test_a_weight_that_is_off_fails_on_values(built, factor):
    recipe, folder = built()
    change_onnx(folder, scale_weight("weight", factor))
    failures = verify(recipe, folder).failures
    assert failures
    assert all(failure.startswith("onnxruntime on cpu, ") for failure in failures)
    assert any("exceeds the bound" in failure for failure in failures)


def test_the_shipped_models_with_one_layer_off_by_a_hundredth(
    shipped, linear_archive, digits_archive, tmp_path
):
    import shutil

    from torchport.store.folders import Store

    copy = Store(tmp_path / "copy")
    for name, weight in (("linear", "weight"), ("digits_resnet18", "fc.weight")):
        source, folder = shipped.build(name, "1.0"), copy.build(name, "1.0")
        shutil.copytree(source.path, folder.path)
        change_onnx(folder, scale_weight(weight, 1.01))
        failures = verify(load_recipe(name), folder).failures
        assert any("exceeds the bound" in failure for failure in failures), name


PAIR = (
    module("        y = self.inner(x)\n        return y, -y"),
    BUILD_NET,
    ('outputs = {"y":', 'outputs = {"z": TensorSpec("float32", ("batch", 2)), "y":'),
)


def test_swapped_outputs_fail(built):
    recipe, folder = built(*PAIR)
    assert verify(recipe, folder).failures == []

    def swap(graph):
        for node in graph.node:
            node.output[:] = [{"y": "z", "z": "y"}.get(o, o) for o in node.output]
            node.input[:] = [{"y": "z", "z": "y"}.get(i, i) for i in node.input]

    change_onnx(folder, swap)
    assert any("exceeds the bound" in failure for failure in verify(recipe, folder).failures)


def test_a_batch_size_baked_into_a_graph_fails(built):
    recipe, folder = built()

    def bake(graph):
        shape = numpy_helper.from_array(np.array([2, 2], np.int64), "baked")
        graph.initializer.append(shape)
        for node in graph.node:
            node.output[:] = ["y_before" if o == "y" else o for o in node.output]
        graph.node.append(onnx.helper.make_node("Reshape", ["y_before", "baked"], ["y"]))

    change_onnx(folder, bake)
    failures = verify(recipe, folder).failures
    assert any("batch=64" in failure for failure in failures)
    assert not any("batch=2:" in failure for failure in failures)


def test_nan_must_be_where_eager_has_it(built):
    recipe, folder = built(module("        return self.inner(x) / (x[:, :2] != 0)"), BUILD_NET)
    assert verify(recipe, folder).failures == []  # zeros: eager and exports both give NaN or Inf.

    def forget_nan(graph):
        graph.node.append(onnx.helper.make_node("Constant", [], ["tiny"], value_float=3e38))
        graph.node.append(onnx.helper.make_node("Min", ["y_before", "tiny"], ["y"]))
        for node in list(graph.node)[:-1]:
            node.output[:] = ["y_before" if o == "y" else o for o in node.output]

    change_onnx(folder, forget_nan)
    assert any("NaN or Inf is not where" in failure for failure in verify(recipe, folder).failures)


def test_decisions_are_counted_and_ties_are_not(built):
    recipe, folder = built()
    verify(recipe, folder)
    (result, *_) = read_json(folder.parity)["results"]
    decisions = result["decisions"]
    assert decisions["compared"] > 100
    assert decisions["agreed"] == decisions["compared"]


def test_a_handler_that_makes_other_tensors_fails(built):
    recipe, folder = built(("np.array([[1, 2, 3]], np.float32)", "np.array([[1, 2, 4]], np.float32)"))
    assert verify(recipe, folder).failures == [
        "handler regressor, request 0: 'x' differs from the recipe's tensor by up to 1"
    ]


def test_a_wrong_normalisation_in_the_handler_fails(shipped, digits_archive, tmp_path, monkeypatch):
    recipe = load_recipe("digits_resnet18")
    wrong = dict(recipe.handler_options)
    wrong["image"] = {**wrong["image"], "mean": [0.4, 0.5, 0.5]}
    monkeypatch.setattr(recipe, "handler_options", wrong)
    from torchport.verify.answers.requests import compare_requests

    count, failures = compare_requests(recipe, shipped.build("digits_resnet18", "1.0"))
    assert count == 6
    assert len(failures) == 6
    assert "'image' differs" in failures[0]


def test_a_large_channel_hides_no_small_one(built):
    recipe, folder = built(
        module("        return self.inner(x) * torch.tensor([1e6, 1.0])"),
        BUILD_NET,
        ("standard_normal((4, 3))", "standard_normal((16, 3))"),
    )
    assert verify(recipe, folder).failures == []

    def off_by_a_hundredth(graph):
        (tensor,) = (
            t for t in graph.initializer if numpy_helper.to_array(t).shape == (2,) and "bias" in t.name
        )
        values = numpy_helper.to_array(tensor) + np.array([0, 0.01], np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))

    change_onnx(folder, off_by_a_hundredth)
    failures = verify(recipe, folder).failures
    assert any("index 1 of the last axis" in failure for failure in failures)


def test_a_signature_that_is_not_the_recipes_is_named(built):
    recipe, folder = built()
    signature = json.loads(folder.signature.read_text())
    signature["graphs"]["main"]["dims"]["batch"] = [1, 100_000]
    folder.signature.write_text(json.dumps(signature))
    refresh_hash(folder, "signature.json")
    with pytest.raises(StaleError, match="signature.json is not the recipe's"):
        verify(recipe, folder)


def test_a_recipe_changed_since_training_is_named(built, write_recipe):
    _, folder = built()
    changed = load_recipe(write_recipe(("nn.Linear(3, 2)", "nn.Linear(3, 2).cpu()")))
    with pytest.raises(StaleError, match="the recipe has changed since it was trained"):
        verify(changed, folder)


def test_a_device_that_is_not_there_leaves_the_certificate(built):
    from torchport.errors import BackendError

    recipe, folder = built()
    verify(recipe, folder)
    before = folder.parity.read_bytes()
    with pytest.raises(BackendError, match="'cuda:9' was asked for"):
        verify(recipe, folder, devices=["cpu", "cuda:9"])
    assert folder.parity.read_bytes() == before


def test_an_output_of_no_dimensions(built):
    recipe, folder = built(
        module("        return self.inner(x).sum()"),
        BUILD_NET,
        ('"float32", ("batch", 2)', '"float32", ()'),
        ("json=[1.0, 2.0, 3.0]", "json=[[1.0, 2.0, 3.0]]"),
    )
    assert verify(recipe, folder).failures == []


def test_a_handler_that_cannot_write_an_answer_fails_with_its_line(built, tmp_path):
    recipe, folder = built()
    (tmp_path / "recipes" / "regressor.py").write_text(
        "import torchport_runtime as runtime\n\n\nclass Mine(runtime.Handler):\n"
        "    def encode(self, request, outputs):\n        return outputs['yy'].tolist()\n"
    )
    (failure,) = verify(recipe, folder).failures
    assert "regressor.py:6: answer: KeyError: 'yy'" in failure


def test_the_process_keeps_its_number_of_threads(built, monkeypatch):
    """Opening a torch backend sets it, wherever that is: comparing, measuring, asking the handler, trying
    a device."""
    from torchport.verify import devices
    from torchport.verify.answers.requests import answered_requests, compare_requests

    recipe, folder = built(
        (
            "    inputs =",
            '    ships = ("torchscript",)\n    options = BackendOptions(threads=3)\n    inputs =',
        ),
        ("from torchport import", "from torchport_runtime import BackendOptions\nfrom torchport import"),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # A device that every backend starts on: this machine's CPU stands in for it.
        monkeypatch.setattr(devices, "cuda_device_count", lambda: 1)
        options = devices.variant_options
        monkeypatch.setattr(
            devices,
            "variant_options",
            lambda recipe, variant, device=None: options(recipe, variant, "cpu"),
        )
        assert devices.usable_devices(recipe, folder) == ["cpu", "cuda"]
        assert torch.get_num_threads() == 1
        assert verify(recipe, folder, devices=["cpu"]).failures == []
        assert torch.get_num_threads() == 1
        assert compare_requests(recipe, folder) == (1, [])
        assert len(list(answered_requests(recipe, folder))) == 1
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
