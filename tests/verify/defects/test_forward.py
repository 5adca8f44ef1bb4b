"""Exports whose computation is another than the trained model's."""

import pytest

from tests.verify.defects.conftest import Model
from tests.verify.defects.failures import says

IMAGE = {"x": '"float32", ("batch", 2, 9, 9)'}
ANY_IMAGE = {"x": '"float32", ("batch", 2, "height", "width")'}


def image(size: int, channels: int = 2) -> dict[str, str]:
    return {"y": f'"float32", ("batch", {channels}, {size}, {size})'}


DEFECTS = {
    "softmax over the batch": (
        Model(layers="self.inner = nn.Linear(6, 6)", right="y = self.inner(x).softmax(1)"),
        "y = self.inner(x).softmax(0)",
        ["torchscript on cpu, graph main", "output 'y'", "exceeds the bound"],
    ),
    "inputs swapped": (
        Model(
            right="y = left - 2 * right", inputs=dict.fromkeys(("left", "right"), '"float32", ("batch", 6)')
        ),
        "y = right - 2 * left",
        ["output 'y'", "exceeds the bound"],
    ),
    "outputs swapped": (
        Model(
            layers="self.inner = nn.Linear(6, 6)",
            right="y = self.inner(x), x.exp()",
            outputs=dict.fromkeys(("logits", "odds"), '"float32", ("batch", 6)'),
        ),
        "y = x.exp(), self.inner(x)",
        ["output 'logits'", "output 'odds'", "holds what the trained model gives as 'odds'"],
    ),
    "a row mixed with its batch mates": (
        Model(layers="self.inner = nn.Linear(6, 6)", right="y = self.inner(x)"),
        "y = self.inner(x) + 1e-3 * x.mean(0, keepdim=True)",
        ["output 'y'", "exceeds the bound"],
    ),
    "rows that depend on their place": (
        Model(layers="self.inner = nn.Linear(6, 6)", right="y = self.inner(x)"),
        "y = self.inner(x) + 1e-3 * torch.arange(x.shape[0]).unsqueeze(1)",
        ["output 'y'", "in reverse order"],
    ),
    "a residual lost": (
        Model(layers="self.inner = nn.Linear(6, 6)", right="y = x + 0.01 * self.inner(x)"),
        "y = x",
        ["output 'y'", "exceeds the bound"],
    ),
    "a bias dropped": (
        Model(layers="self.inner = nn.Linear(6, 6)", right="y = self.inner(x)"),
        "y = F.linear(x, self.inner.weight)",
        ["output 'y'", "zeros", "exceeds the bound"],
    ),
    "zero padding for reflection": (
        Model(
            layers="self.inner = nn.Conv2d(2, 2, 3, padding=1, padding_mode='reflect')",
            right="y = self.inner(x)",
            inputs=IMAGE,
            outputs=image(9),
        ),
        "y = F.conv2d(x, self.inner.weight, self.inner.bias, padding=1)",
        ["output 'y'", "exceeds the bound", "only at the border"],
    ),
    "padding on one side": (
        Model(
            layers="self.inner = nn.Conv2d(2, 2, 2)",
            right="y = self.inner(F.pad(x, (0, 1, 0, 1)))",
            inputs=IMAGE,
            outputs=image(9),
        ),
        "y = self.inner(F.pad(x, (1, 0, 1, 0)))",
        ["output 'y'", "exceeds the bound"],
    ),
    "align_corners": (
        Model(
            right="y = F.interpolate(x, size=(13, 13), mode='bilinear', align_corners=False)",
            inputs=IMAGE,
            outputs=image(13),
        ),
        "y = F.interpolate(x, size=(13, 13), mode='bilinear', align_corners=True)",
        ["output 'y'", "exceeds the bound"],
    ),
    "nearest for bilinear": (
        Model(
            right="y = F.interpolate(x, scale_factor=2.0, mode='bilinear')",
            inputs=IMAGE,
            outputs=image(18),
        ),
        "y = F.interpolate(x, scale_factor=2.0, mode='nearest')",
        ["output 'y'", "exceeds the bound"],
    ),
    "nearest for nearest-exact": (
        Model(
            right="y = F.interpolate(x, size=(13, 13), mode='nearest-exact')",
            inputs=IMAGE,
            outputs=image(13),
        ),
        "y = F.interpolate(x, size=(13, 13), mode='nearest')",
        ["output 'y'", "exceeds the bound"],
    ),
    "padding counted in a mean": (
        Model(
            right="y = F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False)",
            inputs=IMAGE,
            outputs=image(5),
        ),
        "y = F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=True)",
        ["output 'y'", "exceeds the bound", "only at the border"],
    ),
    "ceil_mode": (
        Model(
            right="y = F.max_pool2d(x, 2, 2, ceil_mode=True)",
            inputs=ANY_IMAGE,
            outputs={"y": '"float32", ("batch", 2, "rows", "columns")'},
            dims={"batch": (1, 4), "height": (4, 9), "width": (4, 9), "rows": (1, 5), "columns": (1, 5)},
            sizes={"batch": 2, "height": 8, "width": 8},
        ),
        "y = F.max_pool2d(x, 2, 2)",
        ["height=9", "output 'y' is float32[2, 2, 4,", "eager gives float32[2, 2, 5,"],
    ),
    "tanh for erf in a GELU": (
        Model(right="y = F.gelu(x)"),
        "y = F.gelu(x, approximate='tanh')",
        ["output 'y'", "exceeds the bound"],
    ),
    "another epsilon in a norm": (
        Model(right="y = F.layer_norm(x, (6,), eps=1e-5)"),
        "y = F.layer_norm(x, (6,), eps=1e-6)",
        ["output 'y'", "small", "exceeds the bound"],
    ),
    "rounding half up": (
        Model(right="y = x.round()"),
        "y = (x + 0.5).floor()",
        ["output 'y'", "halves", "exceeds the bound"],
    ),
    "rounding cut off": (
        Model(right="y = (x * 16).round() / 16"),
        "y = (x * 16).trunc() / 16",
        ["output 'y'", "exceeds the bound"],
    ),
    "the last of equals for the first": (
        Model(
            right="y = x.argmax(1)",
            outputs={"y": '"int64", ("batch",)'},
        ),
        "y = 5 - x.flip(1).argmax(1)",
        ["output 'y'", "values differ from eager's"],
    ),
    "equals in another order": (
        Model(
            right="y = x.sort(dim=1, stable=True).indices",
            outputs={"y": '"int64", ("batch", 6)'},
        ),
        "y = 5 - x.flip(1).sort(dim=1, stable=True).indices",
        ["output 'y'", "values differ from eager's"],
    ),
    "a threshold that is reached rarely": (
        Model(right="y = F.softplus(x)"),
        "y = F.softplus(x, threshold=9.0)",
        ["output 'y'", "exceeds the bound"],
    ),
    "a clamp far out": (
        Model(right="y = x * 2"),
        "y = (x * 2).clamp(-65504, 65504)",
        ["output 'y'", "exceeds the bound"],
    ),
    "a large channel over a small one": (
        Model(
            layers="self.scale = nn.Parameter(torch.tensor([1e6, 1.0]).view(2, 1, 1))",
            right="y = x * self.scale",
            inputs=IMAGE,
            outputs=image(9),
        ),
        "y = x * self.scale * torch.tensor([1.0, 1.001]).view(2, 1, 1)",
        ["output 'y'", "index 1 of axis 1"],
    ),
    "a buffer of the training run used for the one that is kept": (
        Model(
            layers="self.norm = nn.BatchNorm1d(6)\nself.norm.running_mean += torch.arange(6)",
            right="y = self.norm(x)",
        ),
        "y = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() + 0 * self.norm.weight",
        ["output 'y'", "exceeds the bound"],
    ),
    "NaN hidden behind a zero": (
        Model(layers="self.inner = nn.Linear(6, 6)", right="y = self.inner(x)"),
        "y = torch.nan_to_num(self.inner(torch.nan_to_num(x)))",
        ["output 'y'", "NaN", "finite"],
    ),
    "NaN hidden behind a zero, in a convolutional ONNX graph": (
        Model(
            layers="self.inner = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2))",
            right="y = self.inner(x)",
            inputs=IMAGE,
            outputs=image(3, 3),
            backends=("onnxruntime",),
        ),
        "y = self.inner(torch.where(x == x, x, torch.zeros(())))",
        ["onnxruntime on cpu, graph main", "all NaN", "finite"],
    ),
    "NaN hidden before a GRU, in an ONNX graph": (
        Model(
            layers="self.cell = nn.GRU(6, 6, batch_first=True)",
            right="y = self.cell(x)[0]",
            inputs={"x": '"float32", ("batch", 3, 6)'},
            outputs={"y": '"float32", ("batch", 3, 6)'},
            backends=("onnxruntime",),
        ),
        "y = self.cell(torch.where(x == x, x, torch.zeros(())))[0]",
        ["onnxruntime on cpu, graph main", "all NaN", "finite"],
    ),
    "NaN hidden behind a maximum": (
        Model(right="y = F.relu(x)"),
        "y = torch.where(x > 0, x, torch.zeros(()))",
        ["output 'y'", "NaN", "finite"],
    ),
    "NaN of the model itself hidden": (
        Model(right="y = x / x.abs()"),
        "y = (x / x.abs()).nan_to_num()",
        ["output 'y'", "zeros", "NaN or Inf is not where"],
    ),
    "Inf turned into a large number": (
        Model(right="y = x.abs().log()"),
        "y = x.abs().log().clamp(min=-3e38)",
        ["output 'y'", "zeros", "NaN or Inf is not where"],
    ),
    "a product of integers in 32 bits": (
        Model(
            right="y = ids * 3",
            inputs={"ids": '"int64", ("batch", 6)'},
            outputs={"y": '"int64", ("batch", 6)'},
        ),
        "y = (ids.to(torch.int32) * 3).to(torch.int64)",
        ["output 'y'", "values differ from eager's"],
    ),
    "a division of integers towards zero": (
        Model(
            right="y = torch.div(ids, 7, rounding_mode='floor')",
            inputs={"ids": '"int64", ("batch", 6), low=-50, high=50'},
            outputs={"y": '"int64", ("batch", 6)'},
        ),
        "y = torch.div(ids, 7, rounding_mode='trunc')",
        ["output 'y'", "values differ from eager's"],
    ),
    "an embedding's last rows cut off": (
        Model(
            layers="self.table = nn.Embedding(50, 3)",
            right="y = self.table(ids)",
            inputs={"ids": '"int64", ("batch", 6), low=0, high=49'},
            outputs={"y": '"float32", ("batch", 6, 3)'},
        ),
        "y = self.table(ids.clamp(max=47))",
        ["output 'y'", "exceeds the bound"],
    ),
    "one row of a large embedding": (
        Model(
            layers="self.table = nn.Embedding(5000, 3)",
            right="y = self.table(ids)",
            inputs={"ids": '"int64", ("batch", 6), low=0, high=4999'},
            outputs={"y": '"float32", ("batch", 6, 3)'},
        ),
        "y = self.table(torch.where(ids == 3210, 3211, ids))",
        ["output 'y'", "every integer", "exceeds the bound"],
    ),
    "an output of another dtype": (
        Model(
            right="y = x.argmax(1)",
            outputs={"y": '"int64", ("batch",)'},
        ),
        "y = x.argmax(1).to(torch.int32)",
        ["output 'y': got int32", "expected int64"],
    ),
    "a batch of one that loses its dimension": (
        Model(layers="self.inner = nn.Linear(6, 6)", right="y = self.inner(x)", torchscript="script"),
        "y = self.inner(x)\nif y.shape[0] == 1:\n    y = y.squeeze(0)",
        ["batch=1", "output 'y': got float32[6]"],
    ),
    "half precision inside": (
        Model(layers="self.inner = nn.Linear(6, 6)", right="y = self.inner(x)"),
        "y = self.inner(x.half().float())",
        ["output 'y'", "exceeds the bound"],
    ),
    "bfloat16 weights": (
        Model(layers="self.inner = nn.Linear(6, 6)", right="y = self.inner(x)"),
        "y = F.linear(x, self.inner.weight.bfloat16().float(), self.inner.bias)",
        ["output 'y'", "exceeds the bound"],
    ),
    "a constant of float64 folded to float32": (
        Model(
            right="y = x * math.pi",
            inputs={"x": '"float64", ("batch", 6)'},
            outputs={"y": '"float64", ("batch", 6)'},
        ),
        "y = x * torch.tensor(math.pi, dtype=torch.float32).double()",
        ["output 'y'", "exceeds the bound"],
    ),
    "float64 computed in float32": (
        Model(
            layers="self.inner = nn.Linear(6, 6).double()",
            right="y = self.inner(x)",
            inputs={"x": '"float64", ("batch", 6)'},
            outputs={"y": '"float64", ("batch", 6)'},
        ),
        "y = F.linear(x.float(), self.inner.weight.float(), self.inner.bias.float()).double()",
        ["output 'y'", "exceeds the bound"],
    ),
    "an optional input that is not looked at where it is left out": (
        Model(
            right="y = x * scale",
            inputs={"x": '"float32", ("batch", 6)', "scale": '"float32", ("batch", 1), default=3.5'},
        ),
        "y = x * torch.where(scale == 3.5, torch.ones(()), scale)",
        ["output 'y'", "defaults", "exceeds the bound"],
    ),
    "a mask turned over": (
        Model(
            right="y = (x * mask).cumsum(1)",
            inputs={"x": '"float32", ("batch", 6)', "mask": '"bool", ("batch", 6)'},
        ),
        "y = (x * ~mask).cumsum(1)",
        ["output 'y'", "exceeds the bound"],
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_is_caught(verified, name):
    model, wrong, words = DEFECTS[name]
    failures = verified(model, wrong).failures
    assert failures
    says(failures, *words)
