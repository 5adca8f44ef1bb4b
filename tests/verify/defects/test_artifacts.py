"""Programs that something has been done to: other weights, state, the wrong file."""

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torchport.verify.outputs.graph
from tests.artifact_edits import refresh_hash
from tests.verify.defects.conftest import Model
from tests.verify.defects.failures import says
from torchport.errors import StaleError
from torchport.verify.verifying import verify
from torchport_runtime.backends.backend import open_backend

TINY = Model(layers="self.inner = nn.Linear(6, 6)", right="y = self.inner(x)")


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
            # A program of torch's is not loaded again for another number of threads: the process has it.
            off = np.float32(1.001 if torch.get_num_threads() == 3 else 1)
            return {name: array * off for name, array in self.backend.run(inputs).items()}

    def opened(path, signature, options):
        return Racing(open_backend(path, signature, options))

    monkeypatch.setattr(torchport.verify.outputs.graph, "open_backend", opened)
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


def test_a_certificate_of_fewer_rules_is_made_again(shipped_as):
    recipe, folder = shipped_as(TINY)
    certificate = verify(recipe, folder).certificate
    folder.parity.write_text(json.dumps({**certificate, "rules": 1}))
    again = verify(recipe, folder)
    assert again.done
    assert again.why == "parity asks for more than it did then"
    assert again.certificate == certificate
