"""Compares every export of one graph with the trained model, on every device.

found = compare_graph(Graph(recipe, folder, "main", module, signature), ["cpu"])
found.failures                       # ["pt2 on cpu, graph main, sample 0: output 'y': ..."]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchport.errors import BackendError
from torchport.model.exported import exported_variants
from torchport.recipe.contract import Recipe
from torchport.recipe.variants import is_optional, variant_options
from torchport.store.folders import BuildFolder
from torchport.store.variants import Variant
from torchport.verify.outputs.cases import parity_cases
from torchport.verify.outputs.comparison import Comparison
from torchport.verify.outputs.divergence import divergence
from torchport.verify.outputs.half_reference import HalfReference
from torchport.verify.outputs.hidden_nan import kernels_that_hide
from torchport.verify.outputs.ledger import Ledger
from torchport.verify.outputs.preconditions import problems_of
from torchport.verify.outputs.reference import Reference
from torchport.verify.torch_threads import torch_threads_kept
from torchport_runtime import BackendOptions, Signature
from torchport_runtime.backends.backend import Backend, open_backend

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Graph:
    """One graph of a recipe: trained module, signature, and folder of exports."""

    recipe: Recipe
    folder: BuildFolder
    name: str
    module: nn.Module
    signature: Signature


@dataclass
class GraphResult:
    """Results of one graph.

    `optional` has the failures of variants that the recipe does not require.
    """

    references: dict[str, Reference]
    """By precision; float32 first."""
    failures: list[str] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    opened: dict[tuple[Variant, str], Backend] = field(default_factory=dict)
    """Loaded backends by variant and device."""

    @property
    def reference(self) -> Reference:
        """The reference in float32."""
        return self.references["float32"]


def compare_graph(
    graph: Graph, devices: Sequence[str], tell: Callable[[str], None] = lambda message: None
) -> GraphResult:
    """Run every exported variant on every device, over all cases.

    Raises:
        BackendError: a device cannot be had.
    """
    guards = (graph.folder.export_record() or {}).get("guards", {}).get(graph.name, ())
    cases = list(parity_cases(graph.recipe, graph.name, graph.signature, guards))
    reference = Reference(graph.module, graph.signature, cases)
    found = GraphResult({"float32": reference})
    problems = problems_of(graph.module, graph.signature, reference)
    found.failures += [f"eager, graph {graph.name}: {problem}" for problem in problems]
    for variant in exported_variants(graph.recipe, graph.folder):
        precision = variant.precision
        if precision not in found.references:
            tell(f"running {graph.name} in {precision}")
            half = HalfReference(graph.module, graph.signature, reference, precision)
            found.references[precision] = half
        for device in devices:
            if device == "cpu" or variant.takes_gpu:
                tell(f"comparing {variant.artifact(graph.name)} on {device}")
                _compare_variant(graph, variant, device, found)
    return found


def _compare_variant(graph: Graph, variant: Variant, device: str, found: GraphResult) -> None:
    """Compare one variant on one device, and add the outcome to `found`."""
    reference = found.references[variant.precision]
    ledger = Ledger(graph.name, variant.backend, device, graph.signature, reference, variant.precision)
    comparison = Comparison(ledger)
    loaded = _run_cases(graph, variant, comparison)
    if loaded is not None:
        found.opened[variant, device] = loaded
    found.results.append(comparison.summary())
    if variant == Variant("onnxruntime") and ledger.failures:
        _locate_divergence(graph, ledger)
    optional = is_optional(graph.recipe, variant)
    (found.optional if optional else found.failures).extend(ledger.failures)


def _run_cases(graph: Graph, variant: Variant, comparison: Comparison) -> Backend | None:
    """Run all cases on one artifact. Returns the backend, None if it fails to load.

    Raises:
        BackendError: the device cannot be had.
    """
    ledger = comparison.ledger
    if isinstance(ledger.reference, HalfReference):
        # Of the model in float32 they are failures without any export.
        for problem in ledger.reference.problems:
            ledger.fail("", problem)
    path = graph.folder.path / variant.artifact(graph.name)
    options = variant_options(graph.recipe, variant, ledger.device)
    loaded = None
    try:
        with torch_threads_kept():
            loaded = open_backend(path, graph.signature, options)
            hiding = partial(kernels_that_hide, path, options=options)
            comparison.compare_all(
                loaded,
                _Reopen(path, graph.signature, options, loaded),
                hiding if variant.backend == "onnxruntime" else None,
            )
    except BackendError as err:
        if ledger.device != "cpu":
            raise  # It cannot be had here: that says nothing about the export.
        ledger.fail("", str(err))
    return loaded


def _locate_divergence(graph: Graph, ledger: Ledger) -> None:
    """Name the first module that differs, on the first case that failed."""
    failed = next((case for case in ledger.reference.cases if ledger.differs_in(case.name)), None)
    if failed is not None:
        where = divergence(graph.recipe, graph.folder, graph.name, graph.module, graph.signature, failed)
        ledger.fail(failed.name, where)


@dataclass(frozen=True)
class _Reopen:
    """Opens the same artifact with another number of threads.

    ONNX Runtime's session has its own threads; torch's are the process's, and a loaded program runs with
    whatever that number is.
    """

    path: Path
    signature: Signature
    options: BackendOptions
    loaded: Backend

    def __call__(self, threads: int) -> Backend:
        if self.options.backend == "onnxruntime":
            return open_backend(self.path, self.signature, replace(self.options, threads=threads))
        import torch

        torch.set_num_threads(threads)
        return self.loaded
