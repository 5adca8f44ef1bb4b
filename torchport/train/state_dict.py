"""Checks that a trained model is all in its state_dict.

    require_kept(recipe, model)          # before weights.pt is written

Anything else is lost with the process that trained it, and the stages after training would verify
exports of another model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from torchport.errors import TrainingError
from torchport.model.eager import EagerBackend
from torchport.model.graphs import model_graphs
from torchport.recipe.contract import Recipe
from torchport.recipe.inputs import example_inputs
from torchport.recipe.user_code import running

if TYPE_CHECKING:
    from torch import nn

ROUNDING = 1e-5
"""Maximum difference of equal outputs, as a share of their scale. Two runs of one model on one machine
differ by less."""


def require_kept(recipe: Recipe, trained: nn.Module) -> None:
    """Build the model again with the trained state_dict, and compare outputs.

    The trained model is moved to the CPU and put into evaluation mode.

    Raises:
        TrainingError: they differ, or the state_dict does not fit what `build` gives.
    """
    with running(recipe.path, "build", TrainingError):
        rebuilt = recipe.build()
    try:
        rebuilt.load_state_dict(trained.state_dict())
    except RuntimeError as err:
        raise TrainingError(
            f"{recipe.path.name}: the trained model's weights do not fit what build() gives "
            f"({str(err)[:300]}): train() may change the values of parameters, not which there are"
        ) from err
    signatures = recipe.signatures()
    graphs = model_graphs(recipe, trained.cpu().eval())
    for graph, again in model_graphs(recipe, rebuilt.eval()).items():
        signature = signatures[graph]
        inputs = example_inputs(signature)
        with running(recipe.path, "forward", TrainingError):
            outputs, repeated = (EagerBackend(graphs[graph], signature).run(inputs) for _ in range(2))
            others = EagerBackend(again, signature).run(inputs)
        for name, array in outputs.items():
            # What is another each time says nothing here; `verify` refuses it, with what to do.
            if _same(array, repeated[name]) and not _same(array, others[name]):
                lost = ", ".join(_lost(trained, rebuilt)) or "something that is not in its state_dict"
                raise TrainingError(
                    f"{recipe.path.name}: build() with the trained weights gives another output {name!r} "
                    f"than the model that was trained: {lost} would be lost. Make it a parameter or a buffer "
                    "(register_buffer), or set it in build()"
                )


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape or one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    finite = np.isfinite(one)
    scale = float(np.abs(one[finite]).max(initial=0.0))
    return bool(np.allclose(one, other, rtol=0, atol=ROUNDING * scale, equal_nan=True))


def _lost(trained: nn.Module, rebuilt: nn.Module) -> Iterator[str]:
    """Buffers outside of the state_dict, and plain attributes, in which models differ."""
    kept = trained.state_dict()
    buffers = dict(rebuilt.named_buffers())
    for name, buffer in trained.named_buffers():
        if name not in kept and (name not in buffers or not buffer.equal(buffers[name])):
            yield f"the buffer {name!r}, which is not persistent,"
    modules = dict(rebuilt.named_modules())
    for path, module in trained.named_modules():
        others = vars(modules[path]) if path in modules else {}
        for name, value in vars(module).items():
            plain = isinstance(value, (bool, int, float, str)) and not name.startswith("_")
            if plain and name != "training" and others.get(name) != value:
                yield f"the attribute {f'{path}.{name}' if path else name} = {value!r}"
