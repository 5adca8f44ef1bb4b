"""Recurrent layers of any length: the loops that torch captures them as, and ONNX's operators for them."""

import itertools
import warnings
from contextlib import nullcontext

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import onnxscript.optimizer
import pytest
import torch
from torch import nn
from torch.export import Dim

from torchport.errors import ExportError
from torchport.export.exporting import export
from torchport.export.onnx import _forget_traced_sizes
from torchport.export.recurrent import recurrent_layers_as_loops
from torchport.export.translations.rnn import rnn_translations
from torchport.recipe.loading import load_recipe
from torchport.train.training import train
from torchport.verify.verifying import verify
from torchport_runtime import Signature, TensorSpec

KINDS = {
    "GRU": nn.GRU,
    "LSTM": nn.LSTM,
    "RNN with tanh": nn.RNN,
    "RNN with relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}

OPTIONS = list(itertools.product((1, 2), *[(False, True)] * 3))
"""Layers, whether in both directions, whether the batch comes first, whether with biases."""


class States(nn.Module):
    """A layer's outputs and its last states, one after the other."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        outputs, last = self.layer(x)
        return outputs, torch.cat(last, -1) if isinstance(last, tuple) else last


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_loops_compute_what_the_layer_does(kind, options):
    """What a release decomposes a layer into must not change its answers: AOTInductor compiles it."""
    num_layers, bidirectional, batch_first, bias = options
    torch.manual_seed(0)
    layer = KINDS[kind](
        4, 3, num_layers=num_layers, bidirectional=bidirectional, batch_first=batch_first, bias=bias
    ).eval()
    x = torch.randn(2, 5, 4)
    state = torch.randn(num_layers * (1 + bidirectional), 2 if batch_first else 5, 3)
    given = (state, state.flip(0)) if kind == "LSTM" else state
    operator = {"GRU": "gru", "LSTM": "lstm"}.get(kind, kind.lower().replace(" with ", "_"))
    overload = getattr(torch.ops.aten, operator).input
    arguments = (x, given, layer._flat_weights, bias, num_layers, 0.0, False, bidirectional, batch_first)
    with torch.no_grad():
        expected = overload(*arguments)
        with recurrent_layers_as_loops():
            got = torch._decomp.decomposition_table[overload](*arguments)
    for mine, theirs in zip(got, expected, strict=True):
        # Sums of a dozen products below 1, in another order.
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


class TwoSequences(nn.Module):
    """Two layers that differ only in the sizes of what they are given."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.one, self.other = KINDS[kind](4, 3), KINDS[kind](4, 3)

    def forward(self, fixed, x):
        return self.one(fixed)[0].sum() + self.other(x)[0]


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize("kind", KINDS)
def test_one_layers_sizes_do_not_restrict_anothers(kind):
    fixed = torch.randn(3, 3, 4)
    dims = {0: Dim("time", min=1, max=9), 1: Dim("batch", min=1, max=9)}
    model = TwoSequences(kind).eval()
    with recurrent_layers_as_loops():
        program = torch.export.export(model, (fixed, torch.randn(6, 4, 4)), dynamic_shapes=(None, dims))
    restored = program.module()
    for time, batch in itertools.product(range(1, 5), repeat=2):
        x = torch.randn(time, batch, 4)
        torch.testing.assert_close(restored(fixed, x), model(fixed, x))


def test_torch_is_left_as_it_was():
    operators = (torch.ops.aten.gru.input, torch.ops.aten.lstm.input, torch.ops.aten.rnn_tanh.input)
    before = [(dict(o.py_kernels), torch._decomp.decomposition_table.get(o)) for o in operators]
    with pytest.raises(ZeroDivisionError), recurrent_layers_as_loops():
        raise ZeroDivisionError
    assert [(dict(o.py_kernels), torch._decomp.decomposition_table.get(o)) for o in operators] == before


@pytest.mark.road
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("GRU", {"bidirectional": True}),
        ("LSTM", {"bidirectional": True, "num_layers": 2}),
        ("RNN with tanh", {}),
        ("RNN with tanh", {"bidirectional": True, "num_layers": 2, "batch_first": False}),
        ("RNN with relu", {"bidirectional": True, "bias": False}),
        ("RNN with relu", {"num_layers": 2, "bias": False, "batch_first": False}),
    ],
    ids=str,
)
def test_one_operator_of_onnx_for_any_length(kind, options):
    torch.manual_seed(0)
    model = States(KINDS[kind](4, 3, **{"batch_first": True, **options})).eval()
    with warnings.catch_warnings(), recurrent_layers_as_loops():
        warnings.simplefilter("ignore")  # torch's own.
        program = torch.export.export(
            model, (torch.randn(7, 13, 4),), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},)
        )
        exported = torch.onnx.export(
            program, dynamo=True, custom_translation_table=rnn_translations(), verbose=False
        )
    operators = {node.op_type for node in exported.model_proto.graph.node}
    assert kind.split()[0] in operators
    assert "Loop" not in operators
    session = onnxruntime.InferenceSession(
        exported.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for shape in ((1, 1, 4), (3, 20, 4), (5, 2, 4)):
        x = torch.randn(*shape)
        with torch.no_grad():
            expected = model(x)
        for got in (session.run(None, {session.get_inputs()[0].name: x.numpy()}), program.module()(x)):
            for mine, theirs in zip(got, expected, strict=True):
                np.testing.assert_allclose(
                    np.asarray(mine.detach() if torch.is_tensor(mine) else mine), theirs, atol=1e-6
                )


MASKED = """
    import numpy as np
    import torch
    from torch import nn
    from torchport import Recipe, Request, TensorSpec

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.GRU(4, 3, batch_first=True)

        def steps(self, x):
            return self.layer(x)[0]

        def forward(self, x, mask):
            mask = mask | (torch.arange(mask.shape[1], device=mask.device)[None] == 0)
            return self.steps(x).masked_fill(~mask[..., None], -1).amax(1)

    class Masked(Recipe):
        name, version, handler = "masked", "1.0", "tensor"
        inputs = {
            "x": TensorSpec("float32", ("batch", "time", 4)),
            "mask": TensorSpec("bool", ("batch", "time")),
        }
        outputs = {"y": TensorSpec("float32", ("batch", 3))}
        dims = {"batch": (1, 8), "time": (1, 64)}

        def build(self):
            return Net()

        def samples(self):
            generator = np.random.default_rng(0)
            yield {
                "x": generator.standard_normal((4, 20, 4)).astype(np.float32),
                "mask": generator.random((4, 20)) < 0.7,
            }

        def requests(self):
            x, mask = np.ones((1, 5, 4), np.float32), np.ones((1, 5), bool)
            json = {"x": x[0].tolist(), "mask": mask[0].tolist()}
            return [Request(json=json, tensors={"x": x, "mask": mask})]
"""

LAYERS = {
    "GRU": (),
    "LSTM": (("nn.GRU(", "nn.LSTM("),),
    "RNN": (("nn.GRU(", "nn.RNN("),),
    "convolution": (
        ("nn.GRU(4, 3, batch_first=True)", "nn.Conv1d(4, 3, 3, padding=1)"),
        ("self.layer(x)[0]", "self.layer(x.transpose(1, 2)).transpose(1, 2)"),
    ),
}


def every_length_is_right(recipe, folder):
    """The ONNX graph at lengths from 1 to 64, in float32 beside eager."""
    model = recipe.build()
    model.load_state_dict(torch.load(folder.weights, weights_only=True))
    session = onnxruntime.InferenceSession(folder.path / "main.onnx", providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    for time in (1, 2, 3, 12, 13, 14, 16, 31, 64):
        x = generator.standard_normal((2, time, 4)).astype(np.float32)
        mask = generator.random((2, time)) < 0.5
        mask[0] = False  # The step that arange adds is all there is.
        with torch.no_grad():
            expected = model.eval()(torch.from_numpy(x), torch.from_numpy(mask)).numpy()
        # Rounding of a recurrence of 64 steps, of values below 1.
        np.testing.assert_allclose(session.run(None, {"x": x, "mask": mask})[0], expected, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_mask_made_of_the_length_beside_a_layer(built, layer):
    """torch 2.14.1 noted the traced length beside a GRU and folded `arange(time) == 0` to a constant."""
    recipe, folder = built(*LAYERS[layer], source=MASKED)
    every_length_is_right(recipe, folder)
    assert not verify(recipe, folder).failures


def test_a_traced_length_that_an_input_is_noted_with_is_forgotten_before_the_graph_is_optimized():
    noted = """<ir_version: 8, opset_import: ["" : 18]>
        agraph (bool[b, 13] mask) => (bool[b, time] y)
        <int64 zero = {0}, int64 one = {1}> {
            length = Shape <start = 1, end = 2> (mask)
            time = Squeeze (length)
            steps = Range (zero, time, one)
            first = Equal (steps, zero)
            y = Or (mask, first)
        }"""
    model = onnx_ir.from_proto(onnx.parser.parse_model(noted))
    spec = TensorSpec("bool", ("batch", "time"))
    signature = Signature(inputs={"mask": spec}, outputs={"y": spec}, dims={"batch": (1, 8), "time": (1, 64)})
    _forget_traced_sizes(model, signature)
    onnxscript.optimizer.optimize(model)
    content = onnx_ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for time in (1, 13, 20):
        (got,) = session.run(None, {"mask": np.zeros((2, time), bool)})
        assert got.tolist() == [[True] + [False] * (time - 1)] * 2


def test_a_graph_that_holds_its_traced_length_is_refused_with_operator_and_line(
    write_recipe, store, monkeypatch
):
    """With neither mend in place: the second trace finds it."""
    monkeypatch.setattr("torchport.export.onnx.recurrent_layers_as_loops", nullcontext)
    monkeypatch.setattr("torchport.export.onnx._forget_traced_sizes", lambda model, signature: None)
    path = write_recipe(source=MASKED)
    recipe = load_recipe(path)
    folder = store.build(recipe.name, recipe.version)
    train(recipe, folder)
    line = (
        path.read_text()
        .splitlines()
        .index("        mask = mask | (torch.arange(mask.shape[1], device=mask.device)[None] == 0)")
    )
    try:
        export(recipe, folder)
    except ExportError as err:
        assert f"{path.name}:{line + 1}: the ONNX graph holds the sizes that it was traced with" in str(err)
        assert "Or (bitwise_or) takes a constant bool[1, 13] and a constant bool[1, 16]" in str(err)
        assert "traced at batch=2, time=13 and at batch=5, time=16" in str(err)
    else:
        every_length_is_right(recipe, folder)
        pytest.skip(f"torch {torch.__version__} believes no traced length: nothing to find")
