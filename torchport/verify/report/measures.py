"""Measures for the report: error distributions, worst inputs, each layer's error, and latency.

    measures = measure_graph(recipe, folder, "main", module, signature, reference)
    measures.backends[0].quantiles       # of the error, in shares of the bound

None of it is part of the certificate: latencies are another each time.
"""

from __future__ import annotations

import base64
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from torchport.errors import BackendError, RecipeError
from torchport.model.eager import EagerBackend
from torchport.model.exported import exported_backends
from torchport.recipe.contract import Recipe
from torchport.recipe.user_code import running
from torchport.recipe.variants import backend_options
from torchport.store.folders import BuildFolder
from torchport.verify.outputs.cases import Case
from torchport.verify.outputs.error_statistics import absolute_error
from torchport.verify.outputs.layer_errors import LayerError, layer_errors
from torchport.verify.outputs.reference import Reference
from torchport.verify.torch_threads import torch_threads_kept
from torchport_runtime import Signature
from torchport_runtime.backends.backend import Backend, open_backend
from torchport_runtime.options import ARTIFACT_SUFFIX
from torchport_runtime.pictures import png, to_pixels

if TYPE_CHECKING:
    from torch import nn

QUANTILES = (*np.linspace(0, 0.9, 19), 0.95, 0.99, 0.999, 1.0)
WORST = 3
"""Inputs that are shown of each backend."""
LATENCY_RUNS, LATENCY_S = 30, 0.5
"""Runs of one row, at most, and seconds of them."""
PICTURE_EDGE = 4
"""Fewer pixels than this along an edge are numbers."""


@dataclass(frozen=True, kw_only=True)
class ShownInput:
    """One row of a sample as the page shows it."""

    where: str
    share: float
    """The row's largest error, in shares of its output's bound."""
    text: str
    picture: str = ""
    """A PNG as a data URL; empty if `text` says what the row holds."""


@dataclass(frozen=True, kw_only=True)
class BackendMeasures:
    """Errors over all values of the real samples, in shares of each output's bound."""

    backend: str
    quantiles: tuple[float, ...]
    latency_ms: float
    worst: tuple[ShownInput, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GraphMeasures:
    """One graph's. `eager` is the float32 model itself, which every backend stands beside."""

    graph: str
    signature: Signature
    backends: tuple[BackendMeasures, ...]
    layers: tuple[LayerError, ...]
    eager: BackendMeasures
    notes: tuple[str, ...] = field(default=())


def measure_graph(
    recipe: Recipe,
    folder: BuildFolder,
    graph: str,
    module: nn.Module,
    signature: Signature,
    reference: Reference,
    opened: Mapping[str, Backend],
) -> GraphMeasures:
    """Run the real samples again on every exported backend, on the CPU.

    Backends that `opened` lacks are opened if they load.
    """
    samples = [case for case in reference.cases if case.is_sample]
    notes = []
    found = []
    for backend in exported_backends(recipe, folder):
        path = folder.path / f"{graph}{ARTIFACT_SUFFIX[backend]}"
        try:
            options = backend_options(recipe, backend, "cpu")
            one = opened.get(backend) or open_backend(path, signature, options)
            single = one
            if backend == "onnxruntime":  # Its threads are its own; torch's are the process's.
                single = open_backend(path, signature, replace(options, threads=1))
            found.append(_measure(recipe, folder, graph, backend, one, single, signature, samples, reference))
        except BackendError as err:
            notes.append(f"{backend}: {err}")
    layers: list[LayerError] = []
    if "onnxruntime" in exported_backends(recipe, folder):
        options = backend_options(recipe, "onnxruntime", "cpu")
        path = folder.path / f"{graph}{ARTIFACT_SUFFIX['onnxruntime']}"
        few = {name: array[:2] if signature.batch_dim else array for name, array in samples[0].inputs.items()}
        try:
            layers = layer_errors(module, signature, path, few, options)
        except Exception as err:  # The user's forward in float64, or the graph: the picture is left out.
            notes.append(f"errors by layer: {str(err)[:200]}")
    eager = EagerBackend(module, signature)
    return GraphMeasures(
        graph=graph,
        signature=signature,
        backends=tuple(found),
        layers=tuple(layers),
        eager=_measure(recipe, folder, graph, "eager", eager, eager, signature, samples, reference),
        notes=tuple(notes),
    )


def _measure(
    recipe: Recipe,
    folder: BuildFolder,
    graph: str,
    name: str,
    backend: Backend,
    single: Backend,
    signature: Signature,
    samples: Sequence[Case],
    reference: Reference,
) -> BackendMeasures:
    shares: list[np.ndarray] = []
    rows: list[tuple[float, Case, int]] = []
    for case in samples:
        known = {output: reference.eager(case.name, output) for output in signature.outputs}
        outputs = known if name == "eager" else backend.run(case.inputs)
        share = _shares(outputs, case, signature, reference)
        shares.append(np.concatenate([s.reshape(-1) for s in share]) if share else np.zeros(1))
        if signature.batch_dim is not None and share:
            by_row = np.max([s.reshape(len(s), -1).max(axis=1, initial=0.0) for s in share], axis=0)
            rows += [(float(worst), case, row) for row, worst in enumerate(by_row)]
    rows.sort(key=lambda entry: -entry[0])
    worst = [_shown(recipe, folder, graph, *entry) for entry in rows[:WORST]] if name != "eager" else []
    every = np.concatenate(shares)
    return BackendMeasures(
        backend=name,
        quantiles=tuple(float(q) for q in np.quantile(every, QUANTILES)),
        latency_ms=_latency_ms(lambda: single.run(_first_row(samples[0], signature))),
        worst=tuple(worst),
    )


def _shares(
    outputs: dict[str, np.ndarray], case: Case, signature: Signature, reference: Reference
) -> list[np.ndarray]:
    """Errors of each floating output, in shares of its bound.

    Values that are not finite in the truth count as 0.
    """
    found = []
    for name in signature.outputs:
        truth, array = reference.truth(case.name, name), outputs[name]
        if array.dtype.kind != "f" or array.shape != truth.value.shape:
            continue
        found.append(absolute_error(array, truth.value, np.isfinite(truth.value)) / truth.bound)
    return found


def _first_row(case: Case, signature: Signature) -> dict[str, np.ndarray]:
    return {n: a[:1] if signature.batch_dim is not None else a for n, a in case.inputs.items()}


def _latency_ms(run: Callable[[], object]) -> float:
    """Median latency on one thread, in milliseconds.

    Several threads wait for each other if the machine is busy; then the waiting would be measured.
    """
    with torch_threads_kept(1):
        return _median_ms(run)


def _median_ms(run: Callable[[], object]) -> float:
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < LATENCY_RUNS and (len(times) < 2 or time.perf_counter() - began < LATENCY_S):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def _shown(recipe: Recipe, folder: BuildFolder, graph: str, share: float, case: Case, row: int) -> ShownInput:
    """One row for the page: a picture, the recipe's description, or numbers."""
    where = f"{case.name}, row {row}"
    arrays = {name: array[row] for name, array in case.inputs.items()}
    try:
        with running(recipe.path, "describe_input"):
            text = recipe.describe_input(graph, arrays, folder.assets)
    except RecipeError as err:  # A word in a report is not worth the certificate.
        text = str(err)
    if text:
        return ShownInput(where=where, share=share, text=text)
    for array in arrays.values():
        if _is_picture(array):
            return ShownInput(where=where, share=share, text="", picture=_data_url(array))
    said = "; ".join(
        f"{name} {np.array2string(array, threshold=8, precision=4)}" for name, array in arrays.items()
    )
    return ShownInput(where=where, share=share, text=said[:400])


def _is_picture(array: np.ndarray) -> bool:
    return (
        array.ndim == 3
        and array.shape[0] in (1, 3)
        and min(array.shape[1:]) >= PICTURE_EDGE
        and array.dtype.kind == "f"
        and bool(np.isfinite(array).all())
    )


def _data_url(array: np.ndarray) -> str:
    low, high = float(array.min()), float(array.max())
    pixels = to_pixels(array[None], low, high if high > low else low + 1)[0]
    drawn = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    return "data:image/png;base64," + base64.b64encode(png(np.ascontiguousarray(drawn))).decode()
