"""The models that are measured, made once and kept below `.cache/bench`.

archives = Archives.made(Path(".cache/bench"))
serving(archives.linear, store, batchSize=1)     # the same archive, otherwise configured
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.errors import BenchmarkError
from torchport.export.exporting import export
from torchport.package.packaging import package
from torchport.recipe.contract import Recipe
from torchport.recipe.loading import load_recipe
from torchport.store.folders import BuildFolder, Store
from torchport.train.training import train
from torchport.verify.verifying import verify

RESNET_RECIPE = Path(__file__).parent / "resnet18_224.py"
MEAN_RECIPE = Path(__file__).parent / "mean_magnitude.py"
CONFIG = "model-config.yaml"
LENGTH_HANDLER = '''"""Answers with the length of the request's body."""


def handle(data, context):
    return None if data is None else [{"length": len(row["body"])} for row in data]
'''


@dataclass(frozen=True, kw_only=True)
class Archives:
    """`stock` is ResNet-18 as TorchServe's own `image_classifier` takes it: TorchScript."""

    linear: Path
    resnet: Path
    stock: Path
    length: Path
    mean: Path
    linear_onnx: Path
    resnet_onnx: Path
    mean_onnx: Path
    photograph: Path

    @classmethod
    def made(cls, folder: Path) -> Archives:
        """Make what is not there, or is not of the recipes as they are now.

        Raises:
            TorchportError: a recipe that cannot be shipped, torch-model-archiver is missing.
        """
        store = Store(folder / "store")
        linear, linear_archive = shipped(load_recipe("linear"), store)
        recipe = load_recipe(str(RESNET_RECIPE))
        resnet, resnet_archive = shipped(recipe, store)
        mean, mean_archive = shipped(load_recipe(str(MEAN_RECIPE)), store)
        photograph = folder / "photograph.jpg"
        photograph.write_bytes(recipe.requests()[0].content)
        return cls(
            linear=linear_archive,
            resnet=resnet_archive,
            stock=_stock(recipe, resnet, folder / "stock"),
            length=length_archive(folder / "length"),
            mean=mean_archive,
            linear_onnx=linear.path / "main.onnx",
            resnet_onnx=resnet.path / "main.onnx",
            mean_onnx=mean.path / "main.onnx",
            photograph=photograph,
        )


def serving(archive: Path, store: Path, **keys: int) -> Path:
    """Put the archive into a store with these keys of `model-config.yaml` (`batchSize`, ...)."""
    store.mkdir(parents=True, exist_ok=True)
    target = store / archive.name
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename == CONFIG:
                content = yaml.safe_dump(yaml.safe_load(content) | keys, sort_keys=False).encode()
            new.writestr(entry, content)
    return target


def shipped(recipe: Recipe, store: Store) -> tuple[BuildFolder, Path]:
    """Train, export, verify and package; what is there already is kept.

    Raises:
        TorchportError: a stage fails.
    """
    folder = store.build(recipe.name, recipe.version)
    train(recipe, folder, seed=0)
    export(recipe, folder)
    failures = verify(recipe, folder).failures
    if failures:
        raise BenchmarkError(f"{recipe.name}: its exports are not what was trained: {failures}")
    return folder, package(recipe, store).path


def _stock(recipe: Recipe, build: BuildFolder, folder: Path) -> Path:
    """The same weights as TorchScript, packaged as TorchServe's documentation has it."""
    import torch

    archive = folder / "resnet18_stock-1.0.mar"
    if archive.is_file() and archive.stat().st_mtime > build.weights.stat().st_mtime:
        return archive
    folder.mkdir(parents=True, exist_ok=True)
    model = recipe.build()
    model.load_state_dict(torch.load(build.weights, weights_only=True))
    with tempfile.TemporaryDirectory(prefix="bench-stock-") as name:
        work = Path(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchServe's own handlers take nothing newer.
            program: Any = torch.jit.script(model.eval())
        program.save(str(work / "resnet18.pt"))
        labels = recipe.handler_options["labels"]
        names = {str(index): label for index, label in enumerate(labels)}
        (work / "index_to_name.json").write_text(json.dumps(names), encoding="utf-8")
        config: dict[str, Any] = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 1, "maxBatchDelay": 10}
        (work / CONFIG).write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [sys.executable, "-m", "model_archiver.model_packaging"]
        command += ["--model-name", "resnet18_stock", "--version", "1.0", "--handler", "image_classifier"]
        command += ["--serialized-file", "resnet18.pt", "--extra-files", "index_to_name.json"]
        command += ["--config-file", CONFIG, "--export-path", "."]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        made = work / "resnet18_stock.mar"
        if done.returncode or not made.is_file():
            raise BenchmarkError(f"torch-model-archiver failed: {done.stderr.strip()[-400:]}")
        archive.write_bytes(made.read_bytes())
    return archive


def length_archive(folder: Path) -> Path:
    """A handler that looks at nothing but the length of what it gets."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "length-1.0.mar"
    model = {"modelName": "length", "handler": "length.py", "modelVersion": "1.0", "configFile": CONFIG}
    manifest = {"createdOn": "01/01/1980 00:00:00", "runtime": "python", "model": model}
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest | {"archiverVersion": "0.12.0"}))
        out.writestr("length.py", LENGTH_HANDLER)
        out.writestr(CONFIG, yaml.safe_dump({"minWorkers": 1, "maxWorkers": 1, "batchSize": 1}))
    return archive
