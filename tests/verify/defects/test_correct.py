"""Models that are right must pass as they are, on every backend, with no tolerance touched."""

import numpy as np
import pytest

from tests.verify.defects.conftest import Model

TRACED = ("torchscript", "onnxruntime")
"""The exports that run other kernels than eager does; a `.pt2` file runs eager's own."""


def tensors(**shapes: str) -> dict[str, str]:
    return {name: f'"float32", ("batch", {shape})' for name, shape in shapes.items()}


def model(layers: str, right: str, inputs: dict[str, str], outputs: dict[str, str], **rest: object) -> Model:
    return Model(
        layers=layers,
        right=right,
        inputs=inputs,
        outputs=outputs,
        **{"backends": TRACED, **rest},  # type: ignore[arg-type]
    )


IMAGE = tensors(x="4, 9, 9")
SEQUENCE = tensors(x='"time", 8')
TIMED = {"dims": {"batch": (1, 4), "time": (1, 12)}, "sizes": {"batch": 3, "time": 5}}
TOKENS = {"ids": '"int64", ("batch", "time"), low=0, high=99'}

CORRECT = {
    "convolution and batch norm": model(
        "self.net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())\n"
        "self.net[1].running_var *= 3",
        "y = self.net(x)",
        IMAGE,
        tensors(y="6, 7, 7"),
    ),
    "group norm": model("self.norm = nn.GroupNorm(2, 4)", "y = self.norm(x)", IMAGE, tensors(y="4, 9, 9")),
    "instance norm": model(
        "self.norm = nn.InstanceNorm2d(4)", "y = self.norm(x)", IMAGE, tensors(y="4, 9, 9")
    ),
    "layer norm": model("self.norm = nn.LayerNorm(6)", "y = self.norm(x)", tensors(x="6"), tensors(y="6")),
    "windows that fit in but once at the least length": model(
        "pass",
        "y = x.unfold(1, 3, 2).sum(1).mean(2)",
        SEQUENCE,
        tensors(y="8"),
        **{**TIMED, "dims": {"batch": (1, 4), "time": (3, 40)}},
    ),
    "GRU": model(
        "self.cell = nn.GRU(8, 6, batch_first=True)",
        "y = self.cell(x)[0]",
        SEQUENCE,
        tensors(y='"time", 6'),
        **TIMED,
    ),
    "bidirectional LSTM": model(
        "self.cell = nn.LSTM(8, 6, batch_first=True, bidirectional=True)",
        "y = self.cell(x)[0]",
        SEQUENCE,
        tensors(y='"time", 12'),
        **TIMED,
    ),
    "transformer encoder with a mask": model(
        "layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)\n"
        "self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)",
        "y = self.encoder(x, src_key_padding_mask=~mask)",
        {**SEQUENCE, "mask": '"bool", ("batch", "time")'},
        tensors(y='"time", 8'),
        **TIMED,
    ),
    "attention with large logits": model(
        "pass",
        "y = (30 * x @ x.transpose(1, 2)).softmax(-1) @ x",
        SEQUENCE,
        tensors(y='"time", 8'),
        **TIMED,
    ),
    "softmax with a mask of -inf": model(
        "pass",
        "y = x.masked_fill(~mask, float('-inf')).softmax(1)",
        {**tensors(x="6"), "mask": '"bool", ("batch", 6)'},
        tensors(y="6"),
    ),
    "embedding": model(
        "self.table = nn.Embedding(100, 5)", "y = self.table(ids)", TOKENS, tensors(y='"time", 5'), **TIMED
    ),
    "sparse one-hot": model(
        "self.inner = nn.Linear(100, 3)",
        "y = self.inner(F.one_hot(ids, 100).to(self.inner.weight.dtype))",
        TOKENS,
        tensors(y='"time", 3'),
        **TIMED,
    ),
    "interpolation with corners aligned": model(
        "pass",
        "y = F.interpolate(x, size=(14, 14), mode='bilinear', align_corners=True)",
        IMAGE,
        tensors(y="4, 14, 14"),
    ),
    "interpolation with corners not aligned": model(
        "pass",
        "y = F.interpolate(x, scale_factor=2.0, mode='bilinear', align_corners=False)",
        IMAGE,
        tensors(y="4, 18, 18"),
    ),
    "grid_sample": model(
        "pass",
        "y = F.grid_sample(x, grid, align_corners=False)",
        {**IMAGE, "grid": '"float32", ("batch", 5, 5, 2), low=-1, high=1'},
        tensors(y="4, 5, 5"),
    ),
    "pixel shuffle": model("pass", "y = F.pixel_shuffle(x, 2)", IMAGE, tensors(y="1, 18, 18")),
    "depthwise convolution": model(
        "self.inner = nn.Conv2d(4, 4, 3, groups=4, padding=1)",
        "y = self.inner(x)",
        IMAGE,
        tensors(y="4, 9, 9"),
    ),
    "transposed convolution": model(
        "self.inner = nn.ConvTranspose2d(4, 3, 3, stride=2)",
        "y = self.inner(x)",
        IMAGE,
        tensors(y="3, 19, 19"),
    ),
    "maximum pooling to a vector": model("pass", "y = x.amax((2, 3))", IMAGE, tensors(y="4")),
    "argmax": model(
        "self.inner = nn.Linear(6, 6)",
        "y = self.inner(x).argmax(1)",
        tensors(x="6"),
        {"y": '"int64", ("batch",)'},
    ),
    "top three, with their places": model(
        "self.inner = nn.Linear(6, 6)",
        "y = tuple(self.inner(x).topk(3, 1))",
        tensors(x="6"),
        {"values": '"float32", ("batch", 3)', "places": '"int64", ("batch", 3)'},
    ),
    "a boolean output": model("pass", "y = x > 0.25", tensors(x="6"), {"y": '"bool", ("batch", 6)'}),
    "several inputs and outputs": model(
        "self.inner = nn.Linear(12, 3)",
        "y = self.inner(torch.cat([x, z], 1)), x * z",
        tensors(x="6", z="6"),
        tensors(y="3", product="6"),
    ),
    "an optional input": model(
        "pass",
        "y = x * scale",
        {**tensors(x="6"), "scale": '"float32", ("batch", 1), default=1.0'},
        tensors(y="6"),
    ),
    "two dynamic sizes": model(
        "self.inner = nn.Conv2d(2, 3, 3, padding=1)",
        "y = self.inner(x).mean((2, 3))",
        {"x": '"float32", ("batch", 2, "height", "width")'},
        tensors(y="3"),
        dims={"batch": (1, 4), "height": (4, 33), "width": (4, 31)},
        sizes={"batch": 2, "height": 9, "width": 7},
    ),
    "logarithms and powers of extremes": model(
        "pass", "y = x.abs().log() + x.exp()", tensors(x="6"), tensors(y="6")
    ),
    "tiny outputs": model(
        "self.inner = nn.Linear(6, 6)", "y = self.inner(x) * 1e-8", tensors(x="6"), tensors(y="6")
    ),
    "huge outputs": model(
        "self.inner = nn.Linear(6, 6)", "y = self.inner(x) * 1e8", tensors(x="6"), tensors(y="6")
    ),
    "cumulative sums": model("pass", "y = x.cumsum(1)", tensors(x="64"), tensors(y="64")),
    "fifty layers with residuals": model(
        "self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(50))",
        "y = x\nfor layer in self.layers:\n    y = y + 0.1 * layer(y).tanh()",
        tensors(x="6"),
        tensors(y="6"),
    ),
    "float64 throughout": model(
        "self.net = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 6)).double()",
        "y = self.net(x)",
        {"x": '"float64", ("batch", 6)'},
        {"y": '"float64", ("batch", 6)'},
    ),
    "slices of a dynamic size": model(
        "pass",
        "y = x[:, 1:] - x[:, : x.shape[1] - 1].mean((1, 2), keepdim=True)",
        SEQUENCE,
        {"y": '"float32", ("batch", "less", 8)'},
        dims={"batch": (1, 4), "time": (2, 12), "less": (1, 11)},
        sizes={"batch": 3, "time": 5},
    ),
    "NaN replaced by the model": model(
        "pass", "y = torch.where(x.log().isnan(), torch.zeros(()), x)", tensors(x="6"), tensors(y="6")
    ),
    "GELU and SiLU": model("pass", "y = F.gelu(x) + F.silu(x)", tensors(x="6"), tensors(y="6")),
    "rounding": model("pass", "y = x.round()", tensors(x="6"), tensors(y="6")),
    "integers without bounds": model(
        "pass", "y = ids * 3 - 7", {"ids": '"int64", ("batch", 6)'}, {"y": '"int64", ("batch", 6)'}
    ),
}


@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor.*")
@pytest.mark.parametrize("name", CORRECT)
def test_passes(verified, name):
    result = verified(CORRECT[name])
    assert result.failures == []
    assert result.certificate["reference"] == {"main": "float64"}
    assert all(r["rows_in_other_order"] > 0 for r in result.certificate["results"])


@pytest.mark.parametrize("name", ["GRU", "bidirectional LSTM"])
def test_what_a_kernel_of_onnx_runtime_hides_is_noted_with_its_name(verified, name):
    result = verified(CORRECT[name])
    (found,) = (r for r in result.certificate["results"] if r["backend"] == "onnxruntime")
    hidden = found["not_finite"]["hidden"]
    assert {entry["case"] for entry in hidden} == {"all NaN", "all Inf", "all -Inf"}
    assert all(kernel.startswith(name.split()[-1]) for entry in hidden for kernel in entry["by"])
    assert all(entry["by"] for entry in hidden)


def test_with_no_state_left_of_the_run_that_came_before(verified):
    """What a certificate counts: of one sample of four rows and three seeds of two."""
    result = verified(Model(layers="self.inner = nn.Linear(6, 6)", right="y = self.inner(x)"))
    (counts,) = result.certificate["results"]
    assert counts["rows_in_other_order"] == 4 + 3 * 2
    assert counts["repeated"] == counts["other_layouts"] == 1
    assert counts["threads"] == {"counts": [1, 3], "compared": 2}
    assert counts["not_finite"]["compared"] == counts["not_finite"]["alike"] == 6 * 2 * 6
    top = counts["decisions"]["top5"]
    assert top["agreed"] == top["compared"] > 0
    assert top["rate"] == 1.0
    assert counts["decisions"]["first_differing"] == []
    (first, *_) = counts["comparisons"]
    assert 0 <= first["errors"]["p50"] <= first["errors"]["p99"] <= first["error"] <= first["bound"]
    assert np.isfinite([first["errors"]["ulp"], first["eager_errors"]["relative"]]).all()
