"""Artifacts that something has been done to: edited graphs, other weights, state, the wrong file."""

import io
import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import torchport.parity
from tests.defects.conftest import Model
from tests.test_parity import change_onnx, refresh_hash
from torchport.errors import StaleError
from torchport.parity import verify
from torchport_runtime.backends import open_backend

ONNX = ("onnxruntime",)
WIDE = Model(
    layers="self.inner = nn.Linear(64, 64)",
    right="y = self.inner(x)",
    inputs={"x": '"float32", ("batch", 64)'},
    outputs={"y": '"float32", ("batch", 64)'},
    backends=ONNX,
)
TINY = Model(layers="self.inner = nn.Linear(6, 6)", right="y = self.inner(x)")


def says(failures: list[str], *words: str) -> None:
    for word in words:
        assert any(word in failure for failure in failures), (word, failures)


def edit_weights(change):
    """The greatest initializer of a graph, by another function of its values."""

    def edit(graph):
        tensor = max(graph.initializer, key=lambda t: numpy_helper.to_array(t).size)
        values = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))

    return edit


def flip_one(values):
    values[17, 3] = -values[17, 3]
    return values


def to_int8(values):
    step = np.abs(values).max() / 127
    return np.round(values / step) * step


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(flip_one, id="one weight of 4096 with its sign turned"),
        pytest.param(lambda w: w * 1.001, id="a layer off by a thousandth"),
        pytest.param(lambda w: w.astype(np.float16), id="weights of half precision"),
        pytest.param(to_int8, id="quantised weights"),
        pytest.param(lambda w: w.T, id="a matrix transposed"),
    ],
)
def test_other_weights_in_an_onnx_file(shipped_as, change):
    recipe, folder = shipped_as(WIDE)
    change_onnx(folder, edit_weights(change))
    failures = verify(recipe, folder).failures
    says(failures, "onnxruntime on cpu, graph main", "output 'y'", "exceeds the bound")
    if change is flip_one:
        says(failures, "all at index 17 of axis 1")


def test_another_epsilon_in_an_onnx_batch_norm(shipped_as):
    recipe, folder = shipped_as(
        Model(
            layers="self.norm = nn.GroupNorm(2, 6)",
            right="y = self.norm(x)",
            backends=ONNX,
        )
    )

    def edit(graph):
        (tensor,) = (t for t in graph.initializer if 0 < float(numpy_helper.to_array(t).max()) < 1e-4)
        changed = np.full_like(numpy_helper.to_array(tensor), 1e-3)
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))

    def edit_attribute(graph):
        attributes = [a for node in graph.node for a in node.attribute if a.name == "epsilon"]
        if not attributes:
            return edit(graph)
        for attribute in attributes:
            attribute.f = 1e-3
        return None

    change_onnx(folder, edit_attribute)
    says(verify(recipe, folder).failures, "output 'y'", "small", "exceeds the bound")


def test_outputs_under_each_others_names(shipped_as):
    recipe, folder = shipped_as(
        Model(
            layers="self.inner = nn.Linear(6, 6)",
            right="y = self.inner(x), x.exp()",
            outputs=dict.fromkeys(("logits", "odds"), '"float32", ("batch", 6)'),
            backends=ONNX,
        )
    )

    def swap(graph):
        graph.output.reverse()

    change_onnx(folder, swap)
    says(verify(recipe, folder).failures, "outputs are ['odds', 'logits'], the signature has")


def test_an_output_cast_to_another_dtype(shipped_as):
    recipe, folder = shipped_as(Model(right="y = x * 2", backends=ONNX))

    def cast(graph):
        for node in graph.node:
            node.output[:] = ["y_single" if o == "y" else o for o in node.output]
        graph.node.append(helper.make_node("Cast", ["y_single"], ["y"], to=TensorProto.DOUBLE))
        graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE

    change_onnx(folder, cast)
    says(verify(recipe, folder).failures, "output 'y': got float64", "expected float32")


class Stateful(nn.Module):
    """Adds a trifle from its seventh call on."""

    calls: torch.Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return self.inner(x) + self.calls * 1e-3


class Kept(nn.Module):
    """Gives out the memory that it will write its next answer to."""

    answer: torch.Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("answer", torch.zeros(16, 6))

    def forward(self, x):
        self.answer[: x.shape[0]] = self.inner(x)
        return self.answer[: x.shape[0]]


class InPlace(nn.Module):
    """Computes in its caller's memory."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        y = self.inner(x)
        x.mul_(2)
        return y


class LargeImages(nn.Module):
    """Right unless both sizes are large at once."""

    def forward(self, x):
        y = x * 2
        if x.shape[2] * x.shape[3] > 600:
            y = y * 1.001
        return y


class Branch(nn.Module):
    """What a trace leaves of `if x.sum() > 0`: the branch that its example took."""

    def forward(self, x):
        return x * 3


class Baked(nn.Module):
    """A batch size taken from the example that was traced."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).reshape(2, 6)


def replace_main(folder, program: nn.Module, script: bool = True) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.script(program) if script else torch.jit.trace(program, torch.ones(2, 6))
        buffer = io.BytesIO()
        torch.jit.save(made, buffer)
    (folder.path / "main.pt").write_bytes(buffer.getvalue())
    refresh_hash(folder, "main.pt")


def trained_inner(folder) -> nn.Module:
    inner = nn.Linear(6, 6)
    state = torch.load(folder.weights, weights_only=True)
    inner.load_state_dict({name.removeprefix("inner."): value for name, value in state.items()})
    return inner


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Stateful, ["output 'y' is another for the same input", "state that the graph keeps"]),
        (Kept, ["output 'y' changed after it was given"]),
        (InPlace, ["input 'x' is overwritten by the graph"]),
        (Baked, ["batch=1: TorchScriptBackend failed", "batch=16: TorchScriptBackend failed"]),
    ],
)
def test_a_program_with_a_fault_of_its_own(shipped_as, kind, words):
    recipe, folder = shipped_as(TINY)
    assert verify(recipe, folder).failures == []
    replace_main(folder, kind(trained_inner(folder)).eval())
    says(verify(recipe, folder).failures, *words)


def test_an_engine_that_shares_out_its_work_wrongly(shipped_as, monkeypatch):
    """The same file, right by one thread and by two: what a race in a kernel looks like."""
    recipe, folder = shipped_as(TINY)

    class Racing:
        device, provider = "cpu", "torch cpu"

        def __init__(self, backend) -> None:
            self.backend = backend

        def run(self, inputs):
            return {name: array * np.float32(1.001) for name, array in self.backend.run(inputs).items()}

    def opened(path, signature, options):
        backend = open_backend(path, signature, options)
        return Racing(backend) if options.threads == 3 else backend

    monkeypatch.setattr(torchport.parity, "open_backend", opened)
    failures = verify(recipe, folder).failures
    says(failures, "sample 0, threads=3: output 'y'", "exceeds the bound")
    assert all("threads=3" in failure for failure in failures)


def test_dropout_left_on(shipped_as):
    recipe, folder = shipped_as(TINY)
    replace_main(folder, nn.Sequential(trained_inner(folder), _AlwaysDropout()))
    says(verify(recipe, folder).failures, "output 'y' is another for the same input: dropout left on")


class _AlwaysDropout(nn.Module):
    """`nn.Dropout` as it is traced in training mode."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.1, training=True)


def test_batch_norm_in_training_mode(shipped_as):
    model = Model(layers="self.norm = nn.BatchNorm1d(6)", right="y = self.norm(x)", dims={"batch": (2, 16)})
    recipe, folder = shipped_as(model)

    class Training(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x):
            mean, var = x.mean(0), x.var(0, unbiased=False)
            return (x - mean) / torch.sqrt(var + 1e-5)

    replace_main(folder, Training(), script=False)
    says(verify(recipe, folder).failures, "output 'y'", "exceeds the bound")


def test_a_traced_branch(shipped_as):
    recipe, folder = shipped_as(
        Model(right="if float(x.sum()) > 0:\n    y = x * 3\nelse:\n    y = x * 2", torchscript="script")
    )
    replace_main(folder, Branch())
    says(verify(recipe, folder).failures, "output 'y'", "exceeds the bound")


def test_two_sizes_that_are_large_at_once(shipped_as):
    recipe, folder = shipped_as(
        Model(
            right="y = x * 2",
            inputs={"x": '"float32", ("batch", 1, "height", "width")'},
            outputs={"y": '"float32", ("batch", 1, "height", "width")'},
            dims={"batch": (1, 2), "height": (4, 32), "width": (4, 32)},
            sizes={"batch": 2, "height": 8, "width": 8},
        )
    )
    replace_main(folder, LargeImages())
    failures = verify(recipe, folder).failures
    says(failures, "height=32, width=32: output 'y'")
    assert all("height=32, width=32" in failure for failure in failures)


def test_the_file_of_an_earlier_training(shipped_as):
    recipe, folder = shipped_as(TINY)
    verify(recipe, folder)
    earlier = trained_inner(folder)
    with torch.no_grad():
        earlier.weight.mul_(0.99)
    replace_main(folder, earlier, script=False)
    says(verify(recipe, folder).failures, "torchscript on cpu, graph main", "output 'y'", "exceeds the bound")


def test_a_file_changed_after_its_certificate(shipped_as):
    recipe, folder = shipped_as(TINY)
    verify(recipe, folder)
    path: Path = folder.path / "main.pt"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(StaleError, match=r"main\.pt"):
        verify(recipe, folder)


def test_an_input_that_an_onnx_graph_takes_in_another_order(shipped_as):
    recipe, folder = shipped_as(
        Model(
            right="y = left - 2 * right",
            inputs=dict.fromkeys(("left", "right"), '"float32", ("batch", 6)'),
            backends=ONNX,
        )
    )

    def exchange(graph):
        for node in graph.node:
            node.input[:] = [{"left": "right", "right": "left"}.get(i, i) for i in node.input]

    change_onnx(folder, exchange)
    assert [value.name for value in onnx.load(folder.path / "main.onnx").graph.input] == ["left", "right"]
    says(verify(recipe, folder).failures, "output 'y'", "exceeds the bound")


def test_a_certificate_of_fewer_rules_is_made_again(shipped_as):
    recipe, folder = shipped_as(TINY)
    certificate = verify(recipe, folder).certificate
    folder.parity.write_text(json.dumps({**certificate, "rules": 1}))
    again = verify(recipe, folder)
    assert again.done
    assert again.why == "parity asks for more than it did then"
    assert again.certificate == certificate
