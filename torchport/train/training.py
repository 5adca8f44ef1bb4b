"""Recipe to weights: `weights.pt` (a state_dict) and `training.json`.

result = train(load_recipe("linear"), store.build("linear", "1.0"), seed=0)
result.record["metrics"]            # {"w": 3.06, "b": 1.93, ...}
"""

from __future__ import annotations

import io
import os
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport.errors import TrainingError
from torchport.model.weights import load_weights, refuse_nonfinite
from torchport.recipe.contract import Recipe
from torchport.recipe.user_code import running
from torchport.store.files import write_bytes, write_json
from torchport.store.folders import BuildFolder
from torchport.store.hashing import sha256_bytes, sha256_file, sha256_json, sha256_tree
from torchport.store.stage_result import StageResult
from torchport.store.versions import library_versions
from torchport.train.preflight import check_untrained
from torchport.train.run import Progress, Run, no_progress
from torchport.train.state_dict import require_kept

if TYPE_CHECKING:
    from torch import nn


class TrainingResult(StageResult):
    """Result of training: the weights and `training.json`."""


def train(
    recipe: Recipe,
    folder: BuildFolder,
    *,
    seed: int = 0,
    weights: Path | None = None,
    force: bool = False,
    show: Progress[Any] = no_progress,
) -> TrainingResult:
    """Train the recipe, or take `weights` (a state_dict) in training's place.

    Raises:
        TrainingError: the recipe's training failed, the weights do not fit or hold NaN.
    """
    inputs = {
        "sources": dict(recipe.sources),
        "seed": seed,
        "weights_file": sha256_file(_existing(weights)) if weights else None,
    }
    with folder.lock():
        record = folder.training_record()
        if recipe.train is None and weights is None:
            inputs["weights_file"] = _weights_file(record)
        if not force:
            _refuse_foreign(recipe, record)
        why = _why_train(record, inputs, folder)
        if record is not None and why is None and not force:
            return TrainingResult(False, record, "unchanged recipe and seed")
        if inputs["weights_file"] and weights is None:
            raise TrainingError(
                f"{recipe.name} was made from a file of weights, and {why}: give it again (--weights FILE)"
            )
        check_untrained(recipe)
        started = time.monotonic()
        model, metrics, run = _trained(recipe, folder, inputs, weights, show)
        refuse_nonfinite(model.state_dict(), "the trained weights")
        require_kept(recipe, model)
        content = _state_dict_bytes(model)
        record = _record(recipe, inputs, metrics, run, content)
        record["seconds"] = round(time.monotonic() - started, 1)
        _keep(folder, record, run, content)
        return TrainingResult(True, record, why or "asked for")


def _weights_file(record: Mapping[str, Any] | None) -> str | None:
    """Digest of the file that the stored weights came from; None if they were trained."""
    digest: str | None = (record or {"inputs": {}})["inputs"].get("weights_file")
    return digest


def _refuse_foreign(recipe: Recipe, record: Mapping[str, Any] | None) -> None:
    """Refuse a name and version that another recipe file has in this store.

    Raises:
        TrainingError: the file that made it has another name.
    """
    made_by = Path((record or {}).get("recipe_file", recipe.path)).name
    if made_by != recipe.path.name:
        raise TrainingError(
            f"{recipe.name} {recipe.version} in this store was made by {made_by}: choose another name or "
            "version, or put this one in its place with --force"
        )


def _state_dict_bytes(model: nn.Module) -> bytes:
    """`weights.pt`: the model's state_dict on the CPU."""
    buffer = io.BytesIO()
    _torch().save({k: v.cpu() for k, v in model.state_dict().items()}, buffer)
    return buffer.getvalue()


def _record(
    recipe: Recipe, inputs: dict[str, Any], metrics: dict[str, float], run: Run, content: bytes
) -> dict[str, Any]:
    """`training.json`, without the seconds that it took."""
    return {
        "recipe": recipe.name,
        "version": recipe.version,
        "recipe_file": str(recipe.path),
        "task": recipe.task,
        "parameters": dict(recipe.parameters),
        "weights_from": "a file" if inputs["weights_file"] else "training" if recipe.train else "build",
        "inputs": inputs,
        "metrics": metrics,
        "seed": run.seed,
        "device": run.device,
        "data_sha256": run.data_sha256,
        "weights_sha256": sha256_bytes(content),
        "assets": sha256_tree(run.assets),
        "libraries": library_versions("torch", "torchvision", "numpy", "scikit-learn", "pillow"),
    }


def _keep(folder: BuildFolder, record: dict[str, Any], run: Run, content: bytes) -> None:
    """Write weights and assets, then the record that names them; delete the checkpoint."""
    write_bytes(folder.weights, content)
    shutil.rmtree(folder.assets, ignore_errors=True)
    run.assets.rename(folder.assets)
    write_json(folder.training, record)
    folder.checkpoint.unlink(missing_ok=True)


def keep_weights(recipe: Recipe, folder: BuildFolder) -> TrainingResult:
    """Bind existing weights to the recipe as it is now, without training.

    The recipe's file has changed since they were trained. Whether they fit is checked; that training would
    still give them is the caller's word. `training.json` says so: `trained_by` has the digests of the sources
    that trained them.

    Raises:
        TrainingError: there are none, they are not what training wrote, or do not fit what `build` gives.
    """
    with folder.lock():
        record = folder.training_record()
        if record is None or not folder.weights.is_file():
            raise TrainingError(
                f"{folder.name} {folder.version} has no weights to keep: torchport train {recipe.path.name}"
            )
        for path, digest, recorded in (
            (folder.weights, sha256_file(folder.weights), record["weights_sha256"]),
            (folder.assets, sha256_tree(folder.assets), record["assets"]),
        ):
            if digest != recorded:
                raise TrainingError(
                    f"{path.name} is not what training wrote: train again, without --keep-weights"
                )
        if record["inputs"].get("sources") == dict(recipe.sources):
            return TrainingResult(False, record, "the recipe is as it was trained")
        with running(recipe.path, "build", TrainingError):
            model = recipe.build()
        load_weights(model, folder.weights)
        record |= {
            "trained_by": record.get("trained_by", record["inputs"].get("sources")),
            "inputs": {**record["inputs"], "sources": dict(recipe.sources)},
            "recipe_file": str(recipe.path),
            "parameters": dict(recipe.parameters),
        }
        write_json(folder.training, record)
        return TrainingResult(True, record, "its weights are kept (--keep-weights)")


def _trained(
    recipe: Recipe,
    folder: BuildFolder,
    inputs: dict[str, Any],
    weights: Path | None,
    show: Progress[Any],
) -> tuple[nn.Module, dict[str, float], Run]:
    torch = _torch()
    key = sha256_json(inputs)
    run = Run(
        device="cuda" if torch.cuda.is_available() else "cpu",
        seed=int(inputs["seed"]),
        cache=recipe.cache,
        assets=folder.path / "assets.new",  # The old ones stay until training has ended.
        checkpoint_path=folder.checkpoint,
        checkpoint_key=key,
        show=show,
    )
    if not folder.checkpoint.is_file():
        shutil.rmtree(run.assets, ignore_errors=True)
    run.assets.mkdir(parents=True, exist_ok=True)
    _seed_everything(run.seed)
    with running(recipe.path, "build", TrainingError):
        model = recipe.build()
    if weights is not None:
        load_weights(model, weights)
        return model, {}, run
    if recipe.train is None:
        return model, {}, run
    model.to(run.device)
    with running(recipe.path, "train", TrainingError), _deterministic():
        metrics = recipe.train(model, run)
    try:
        return model, {str(name): float(value) for name, value in (metrics or {}).items()}, run
    except (AttributeError, TypeError, ValueError) as err:
        raise TrainingError(
            f"{recipe.path.name}: train returned {metrics!r}, expected metrics, names to numbers"
        ) from err


@contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic kernels while training, where torch has them; afterwards as it was."""
    torch = _torch()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _why_train(record: dict[str, Any] | None, inputs: dict[str, Any], folder: BuildFolder) -> str | None:
    """Why the weights cannot stay as they are; None if they can."""
    if record is None or not folder.weights.is_file():
        return "not trained before"
    before = record.get("inputs", {})
    if before.get("seed") != inputs["seed"]:
        return f"the seed was {before.get('seed')}, now {inputs['seed']}"
    if before != inputs:
        return "the recipe or its weights file has changed"
    if sha256_file(folder.weights) != record["weights_sha256"]:
        return "weights.pt is not what training wrote"
    if sha256_tree(folder.assets) != record["assets"]:
        return "the assets are not what training wrote"
    return None


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    _torch().manual_seed(seed)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise TrainingError(f"no weights file {path}")
    return path


def _torch() -> Any:
    try:
        import torch
    except ImportError as err:
        raise TrainingError("this needs PyTorch: pip install 'torchport[train]'") from err
    return torch
