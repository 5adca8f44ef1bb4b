"""Artifacts to a certificate: every export compared with the trained model.

    result = verify(load_recipe("linear"), store.build("linear", "1.0"))
    result.certificate["passed"]

Compared are names, then shapes, then dtypes, then values, then decisions, of every backend on every case,
with the eager model in float64; then what must change nothing: the order of rows, running once more,
threads, the layout of inputs. All failures are collected and reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torchport.errors import BackendError
from torchport.model.certificate import binding, has_evidence
from torchport.model.graphs import model_graphs
from torchport.model.trained import rebuilt_model
from torchport.recipe.contract import Recipe
from torchport.store.files import json_bytes, write_bytes, write_json
from torchport.store.folders import BuildFolder
from torchport.store.hashing import sha256_bytes
from torchport.store.serving_record import records_of_certificate
from torchport.store.stage_result import StageResult
from torchport.store.variants import Variant
from torchport.store.versions import library_versions
from torchport.verify.answers.parity import compare_answers
from torchport.verify.answers.requests import answered_requests, compare_requests
from torchport.verify.devices import usable_devices
from torchport.verify.evidence import Evidence
from torchport.verify.outputs.graph import Graph, GraphResult, compare_graph
from torchport.verify.record import Basis, Findings, certificate_of
from torchport.verify.report.measures import GraphMeasures, measure_graph
from torchport.verify.report.measures_file import write_measures
from torchport.verify.report.page import report
from torchport.verify.torch_threads import torch_threads_kept
from torchport_runtime.backends.backend import Backend

if TYPE_CHECKING:
    from torch import nn


class ParityResult(StageResult):
    """The certificate. Not done if one of exactly these bytes had passed already."""

    @property
    def certificate(self) -> dict[str, Any]:
        """`parity.json`."""
        return self.record

    @property
    def failures(self) -> list[str]:
        return list(self.certificate["failures"])


def verify(
    recipe: Recipe,
    folder: BuildFolder,
    *,
    devices: Sequence[str] | None = None,
    force: bool = False,
    tell: Callable[[str], None] = lambda message: None,
) -> ParityResult:
    """Compare every exported artifact with the trained model; write `parity.json`, passed or not.

    `devices` are those to compare on; the CPU, and CUDA where every backend can use it, unless given.

    Raises:
        StaleError: nothing exported, or an artifact is not what was exported; the message names it.
    """
    with folder.lock():
        basis = Basis(
            binding=binding(recipe, folder),
            libraries=library_versions("torch", "onnxruntime", "numpy", "pillow"),
            devices=_devices(recipe, folder, devices),
        )
        before = folder.certificate()
        if before is not None and not has_evidence(folder, before):
            before = None
        why = basis.stale_because(before)
        if before is not None and why is None and not force:
            return ParityResult(False, before, "a passing certificate of exactly these bytes")
        modules = model_graphs(recipe, rebuilt_model(recipe, folder))
        found = Findings(recipe)
        evidence = Evidence(recipe.ships[0])
        measures = []
        for name, signature in recipe.signatures().items():
            graph = Graph(recipe, folder, name, modules[name], signature)
            result = found.graphs[name] = compare_graph(graph, basis.devices, tell)
            for precision, reference in result.references.items():
                evidence.add_cases(name, signature, reference.cases, reference, precision)
            tell(f"measuring {name} for the report")
            measures.append(_measure(graph, result))
        with torch_threads_kept():
            _compare_handler(folder, modules, found, tell)
            if not found.failures:
                for request, answer in answered_requests(recipe, folder):
                    evidence.add_request(request, answer)
        certificate = _write(folder, basis, found, evidence, measures)
        return ParityResult(True, certificate, why or "asked for")


def _devices(recipe: Recipe, folder: BuildFolder, given: Sequence[str] | None) -> list[str]:
    """The devices to compare on.

    Raises:
        BackendError: the recipe runs by TensorRT, and no CUDA device is among them.
    """
    devices = list(given or usable_devices(recipe, folder))
    if recipe.options.tensorrt and not any(device.startswith("cuda") for device in devices):
        raise BackendError(
            f"{recipe.name} {recipe.version} is to run by TensorRT (options.tensorrt), which is proven "
            f"on a CUDA device only; the devices given are {', '.join(devices)}"
        )
    return devices


def _measure(graph: Graph, result: GraphResult) -> GraphMeasures:
    """Measure the graph's float32 backends on the CPU for the report."""
    opened = {
        variant.backend: backend
        for (variant, device), backend in result.opened.items()
        if device == "cpu" and variant.precision == "float32"
    }
    with torch_threads_kept():
        return measure_graph(
            graph.recipe, graph.folder, graph.name, graph.module, graph.signature, result.reference, opened
        )


def _compare_handler(
    folder: BuildFolder, modules: Mapping[str, nn.Module], found: Findings, tell: Callable[[str], None]
) -> None:
    """Compare the handler's tensors with the recipe's, and answers with the trained model's."""
    found.requests, found.request_failures = compare_requests(found.recipe, folder)
    if not found.request_failures:  # Of other tensors any answer would be wrong.
        tell("comparing answers")
        opened = _shipped_backends(found)
        found.answers = compare_answers(found.recipe, folder, modules, opened, found.references)


def _shipped_backends(found: Findings) -> dict[tuple[Variant, str], dict[str, Backend]]:
    """Loaded backends that ship, by variant and device, then by graph.

    Backends that lack a graph are left out.

    In float32 only: a half precision's answers are judged by the recipe's goals, when the archive is checked.
    """
    opened: dict[tuple[Variant, str], dict[str, Backend]] = {}
    for name, graph in found.graphs.items():
        for (variant, device), backend in graph.opened.items():
            if variant.precision == "float32" and variant.backend in found.recipe.ships:
                opened.setdefault((variant, device), {})[name] = backend
    return {key: backends for key, backends in opened.items() if set(backends) == set(found.graphs)}


def _write(
    folder: BuildFolder,
    basis: Basis,
    found: Findings,
    evidence: Evidence,
    measures: Sequence[GraphMeasures],
) -> dict[str, Any]:
    """Write the test vectors, the measures, the page and, last, the certificate."""
    vectors = evidence.to_bytes()
    certificate = certificate_of(folder, basis, found, vectors)
    digest = sha256_bytes(json_bytes(certificate))
    write_bytes(folder.evidence, vectors)
    write_measures(folder.measures, measures, digest)
    write_bytes(folder.report, report(certificate, measures, records_of_certificate(folder, digest)))
    write_json(folder.parity, certificate)
    return certificate
