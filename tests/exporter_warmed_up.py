"""Exports a model when it is imported: for a fork server, whose children begin with the exporter as it is
after a first export, all its imports done."""

import tempfile
import textwrap
from pathlib import Path

import torch

from tests.conftest import TINY
from tests.exporter_table import keep_table
from torchport.export.exporting import export
from torchport.recipe.loading import load_recipe
from torchport.store.folders import Store
from torchport.train.training import train

# Threads do not outlive a fork.
torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "tiny_recipe.py"
    path.write_text(textwrap.dedent(TINY), encoding="utf-8")
    recipe = load_recipe(path)
    build = Store(Path(folder)).build(recipe.name, recipe.version)
    train(recipe, build)
    for _ in range(2):
        export(recipe, build, force=True)
        keep_table()
