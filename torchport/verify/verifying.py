"""Artifacts to a certificate: proof that every export computes what the trained model computes.

    result = verify(load_recipe("linear"), store.build("linear", "1.0"))
    result.certificate["passed"]

Names, then shapes, then dtypes, then values, then decisions, of every backend on every case, against
the eager model in float64; then what must change nothing: the order of rows, running once more, threads,
the layout of inputs. All failures are collected and reported at once.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torchport.errors import BackendError
from torchport.model.certificate import FORMAT, RULES, binding, differences, has_evidence
from torchport.model.exported import exported_variants, not_exported
from torchport.model.graphs import model_graphs
from torchport.model.trained import trained_model
from torchport.recipe.contract import Recipe
from torchport.recipe.requests import sample_request
from torchport.recipe.variants import is_optional, variant_options
from torchport.store.files import json_bytes, write_bytes, write_json
from torchport.store.folders import BuildFolder
from torchport.store.hashing import sha256_bytes
from torchport.store.serving_record import read_records
from torchport.store.variants import Variant
from torchport.store.versions import library_versions
from torchport.verify.answers.parity import AnswerParity, compare_answers
from torchport.verify.answers.requests import answered_requests, compare_requests
from torchport.verify.devices import usable_devices
from torchport.verify.evidence import FILE, Evidence
from torchport.verify.outputs.cases import parity_cases
from torchport.verify.outputs.comparison import Comparison
from torchport.verify.outputs.divergence import divergence
from torchport.verify.outputs.half_reference import HalfReference
from torchport.verify.outputs.hidden_nan import kernels_that_hide
from torchport.verify.outputs.ledger import Ledger
from torchport.verify.outputs.preconditions import problems_of
from torchport.verify.outputs.reference import EAGER_MULTIPLE, SCALE_EPSILONS, Reference
from torchport.verify.report.measures import measure_graph
from torchport.verify.report.page import report, with_wire
from torchport.verify.torch_threads import torch_threads_kept
from torchport.version import __version__
from torchport_runtime import BackendOptions, Signature
from torchport_runtime.backends.backend import Backend, open_backend


@dataclass(frozen=True)
class ParityResult:
    """`done` is False where a passing certificate of exactly these bytes was there already."""

    done: bool
    certificate: dict[str, Any]
    why: str

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
        bound = binding(recipe, folder)
        devices = list(devices or usable_devices(recipe, folder))
        if recipe.options.tensorrt and not any(device.startswith("cuda") for device in devices):
            raise BackendError(
                f"{recipe.name} {recipe.version} is to run by TensorRT (options.tensorrt), which is proven "
                f"on a CUDA device only; the devices given are {', '.join(devices)}"
            )
        before = folder.certificate()
        if before is not None and not has_evidence(folder, before):
            before = None
        libraries = library_versions("torch", "onnxruntime", "numpy", "pillow")
        why = _why_verify(before, bound, libraries, devices)
        if before is not None and why is None and not force:
            return ParityResult(False, before, "a passing certificate of exactly these bytes")
        model = trained_model(recipe, folder)
        failures: list[str] = []
        optional: list[str] = []
        results = []
        graphs = model_graphs(recipe, model)
        reference_kinds = {}
        evidence = Evidence(recipe.ships[0])
        measures = []
        refused = {}
        guards = (folder.export_record() or {}).get("guards", {})
        opened: dict[tuple[str, str], dict[str, Backend]] = {}
        for graph, signature in recipe.signatures().items():
            cases = list(parity_cases(recipe, graph, signature, guards.get(graph, ())))
            reference = Reference(graphs[graph], signature, cases)
            problems = list(problems_of(graphs[graph], signature, reference))
            reference_kinds[graph] = reference.kind
            if reference.refused:
                refused[graph] = reference.refused
            evidence.add_cases(graph, signature, reference.cases, reference)
            failures += [f"eager, graph {graph}: {problem}" for problem in problems]
            references = {"float32": reference}
            for variant in exported_variants(recipe, folder):
                if variant.precision not in references:
                    tell(f"running {graph} in {variant.precision}")
                    half = HalfReference(graphs[graph], signature, reference, variant.precision)
                    references[variant.precision] = half
                    evidence.add_cases(graph, signature, half.cases, half, variant.precision)
                for device in devices:
                    if device != "cpu" and not variant.takes_gpu:
                        continue
                    tell(f"comparing {variant.artifact(graph)} on {device}")
                    held = references[variant.precision]
                    comparison, loaded = _compared(recipe, folder, variant, device, graph, signature, held)
                    if loaded is not None:
                        opened.setdefault((str(variant), device), {})[graph] = loaded
                    results.append(comparison.summary())
                    ledger = comparison.ledger
                    if str(variant) == "onnxruntime" and ledger.failures:
                        failed = next((c for c in reference.cases if ledger.differs_in(c.name)), None)
                        if failed is not None:
                            module = graphs[graph]
                            ledger.fail(
                                failed.name, divergence(recipe, folder, graph, module, signature, failed)
                            )
                    (optional if is_optional(recipe, variant) else failures).extend(ledger.failures)
            tell(f"measuring {graph} for the report")
            on_cpu = {name: by[graph] for (name, on), by in opened.items() if on == "cpu" and graph in by}
            with torch_threads_kept():
                measures.append(
                    measure_graph(recipe, folder, graph, graphs[graph], signature, reference, on_cpu)
                )
        with torch_threads_kept():
            requests, request_failures = compare_requests(recipe, folder)
            failures += request_failures
            answers = AnswerParity()
            if not request_failures:  # Of other tensors any answer would be wrong.
                tell("comparing answers")
                ships = {
                    key: by for key, by in opened.items() if key[0] in recipe.ships and set(by) == set(graphs)
                }
                answers = compare_answers(recipe, folder, graphs, ships, reference_kinds)
                for backend, found in answers.failures.items():
                    (optional if backend in recipe.optional_backends else failures).extend(found)
            if not failures:
                for request, answer in answered_requests(recipe, folder):
                    evidence.add_request(request, answer)
        proof = evidence.to_bytes()
        certificate = {
            "format": FORMAT,
            "rules": RULES,
            "torchport": __version__,
            "recipe": recipe.name,
            "version": recipe.version,
            "passed": not failures,
            "failures": failures,
            "reference": reference_kinds,
            "bound": {"eager_multiple": EAGER_MULTIPLE, "scale_epsilons": SCALE_EPSILONS},
            "optional_failures": optional,
            "refused_by_the_model": refused,
            "not_exported": not_exported(folder),
            "devices": devices,
            "machine": platform.machine(),
            "libraries": libraries,
            "binding": bound,
            "requests_compared": requests,
            "answers_against": answers.against,
            "answers": answers.summary(),
            "sample_request": sample_request(recipe),
            "evidence": {FILE: sha256_bytes(proof)},
            "results": results,
        }
        write_bytes(folder.evidence, proof)
        page = report(certificate, measures)
        digest = sha256_bytes(json_bytes(certificate))
        served = [r for r in read_records(folder) if r.get("certificate_sha256") == digest]
        write_bytes(folder.report, with_wire(page, served))
        write_json(folder.parity, certificate)
        return ParityResult(True, certificate, why or "asked for")


def _compared(
    recipe: Recipe,
    folder: BuildFolder,
    variant: Variant,
    device: str,
    graph: str,
    signature: Signature,
    reference: Reference,
) -> tuple[Comparison, Backend | None]:
    """One artifact on one device, over all cases; and the artifact as it was opened, where it opens.

    Raises:
        BackendError: the device cannot be had.
    """
    ledger = Ledger(graph, variant.backend, device, signature, reference, variant.precision)
    comparison = Comparison(ledger)
    if isinstance(reference, HalfReference):  # Of the model in float32 they are failures without any export.
        for problem in reference.problems:
            ledger.fail("", problem)
    path = folder.path / variant.artifact(graph)
    options = variant_options(recipe, variant, device)
    loaded = None
    try:
        with torch_threads_kept():
            loaded = open_backend(path, signature, options)
            hiding = partial(kernels_that_hide, path, options=options)
            comparison.compare_all(
                loaded,
                _Reopen(path, signature, options, loaded),
                hiding if variant.backend == "onnxruntime" else None,
            )
    except BackendError as err:
        if device != "cpu":
            raise  # It cannot be had here: that says nothing about the export.
        ledger.fail("", str(err))
    return comparison, loaded


@dataclass(frozen=True)
class _Reopen:
    """Gives a backend with another number of threads. ONNX Runtime's session has its own; torch's is the
    process's, and a program that is loaded runs with whatever it is."""

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


def _why_verify(
    before: dict[str, Any] | None,
    bound: dict[str, Any],
    libraries: dict[str, str],
    devices: Sequence[str],
) -> str | None:
    if before is None:
        return "not verified yet"
    if not before["passed"]:
        return "it failed before"
    if before.get("rules") != RULES:
        return "parity asks for more than it did then"
    changed = differences(before["binding"], bound)
    if changed:
        return f"changed since: {', '.join(changed)}"
    if before["libraries"] != libraries:
        return "a library has changed"
    if before["devices"] != list(devices):
        return "other devices"
    return None
