"""Writes a recipe to start from, which trains and packages without changes."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

from torchport.errors import RecipeError
from torchport.recipe.checks import refuse_shadowing
from torchport.recipe.shipped import packaged_folder
from torchport.store.files import write_bytes

_RECIPE = Template('''"""$title: a recipe to start from.

    torchport ship $name.py
"""

import numpy as np
import torch
from torch import nn

from torchport import Example, Recipe, Request, TensorSpec


def data(seed):
    """Replace this by your own: inputs float32 [n, 3], targets float32 [n, 1]."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((256, 3)).astype(np.float32)
    return x, (x.sum(axis=1, keepdims=True) ** 2).astype(np.float32)


class $class_name(Recipe):
    """The square of the sum of three numbers."""

    name, version, handler = "$name", "1.0", "$handler"
    inputs = {"x": TensorSpec("float32", ("batch", 3))}
    outputs = {"y": TensorSpec("float32", ("batch", 1))}

    def build(self):
        return nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 1))

    def train(self, model, run):
        x, y = (torch.from_numpy(array).to(run.device) for array in data(run.seed))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in run.progress(range(500)):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
        return {"train_mse": loss.item()}

    def samples(self):
        yield {"x": data(seed=10**6)[0][:64]}

    def requests(self):
        row = np.array([[1.0, 2.0, 3.0]], np.float32)
        return [Request(json=row[0].tolist(), tensors={"x": row})]

    def heldout(self):
        for x, y in zip(*data(seed=10**6)):
            yield Example(request=Request(json=x.tolist()), expected=y.tolist())

    def score(self, answers, expected):
        return {"heldout_mse": float(np.mean((np.array(answers) - np.array(expected)) ** 2))}
''')

_HANDLER = Template('''"""The handler of $name: requests to tensors, tensors to answers."""

import torchport_runtime as runtime


class ${handler_class}(runtime.Handler):
    def decode(self, request):
        return request.tensors(self.signature)

    def encode(self, request, outputs):
        values = outputs["y"].tolist()
        return values if request.batched else values[0]
''')


def scaffold(name: str, folder: Path, *, with_handler: bool = False) -> list[Path]:
    """Write `NAME.py`, and `NAME_handler.py` if asked. Returns the paths.

    Raises:
        RecipeError: a name that is no identifier or shadows a package, or a file that exists already.
    """
    if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_]*", name) or keyword.iskeyword(name.lower()):
        raise RecipeError(f"name {name!r}: letters, digits and _ are expected, a letter first, no keyword")
    refuse_shadowing(name, "the recipe")
    if (packaged_folder("handlers") / f"{name}.py").is_file():
        raise RecipeError(f"name {name!r} is that of a handler: choose another, such as {name}_recipe")
    values = {
        "name": name,
        "title": name.replace("_", " "),
        "class_name": "".join(part.capitalize() for part in name.split("_")) + "Recipe",
        "handler_class": "".join(part.capitalize() for part in name.split("_")) + "Handler",
        "handler": f"{name}_handler" if with_handler else "regressor",
    }
    files = {folder / f"{name}.py": _RECIPE.substitute(values)}
    if with_handler:
        files[folder / f"{name}_handler.py"] = _HANDLER.substitute(values)
    for path in files:
        if path.exists():
            raise RecipeError(f"{path} is there already: choose another name, or remove it")
    for path, text in files.items():
        write_bytes(path, text.encode())
    return list(files)
