"""Artifacts to a certificate: proof that every export computes what the trained model computes.

    result = verify(load_recipe("linear"), store.build("linear", "1.0"))
    result.certificate["passed"]

Names, then shapes, then dtypes, then values, then decisions, of every backend on every case, against
the eager model in float64; all failures are collected and reported at once.
"""

from __future__ import annotations

import base64
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import torchport
from torchport.cases import Case, parity_cases
from torchport.certificate import FORMAT, backend_options, binding, differences
from torchport.errors import BackendError, RecipeError, SignatureError
from torchport.export import model_graphs
from torchport.handler_file import load_handler
from torchport.recipe import Recipe, Request
from torchport.reference import BATCH_ROWS, EAGER_MULTIPLE, SCALE_EPSILONS, Reference, Truth
from torchport.store import BuildFolder, write_json
from torchport.training import trained_model
from torchport.user_code import running
from torchport.versions import library_versions
from torchport_runtime import InferenceRequest, Signature
from torchport_runtime.backends import Backend, open_backend
from torchport_runtime.options import ARTIFACT_SUFFIX

SAMPLE_BYTES = 256 * 1024
"""A sample request of more than this does not travel in the certificate."""


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
    devices: Sequence[str] = ("cpu",),
    force: bool = False,
    tell: Callable[[str], None] = lambda message: None,
) -> ParityResult:
    """Compare every exported artifact with the trained model; write `parity.json`, passed or not.

    Raises:
        StaleError: nothing exported, or an artifact is not what was exported; the message names it.
    """
    with folder.lock():
        bound = binding(recipe, folder)
        before = folder.certificate()
        libraries = library_versions("torch", "onnxruntime", "numpy", "pillow")
        why = _why_verify(before, bound, libraries, devices)
        if before is not None and why is None and not force:
            return ParityResult(False, before, "a passing certificate of exactly these bytes")
        model = trained_model(recipe, folder)
        failures: list[str] = []
        results = []
        graphs = model_graphs(recipe, model)
        reference_kinds = {}
        for graph, signature in recipe.signatures().items():
            cases = list(parity_cases(recipe, graph, signature))
            reference = Reference(graphs[graph], signature, cases)
            reference_kinds[graph] = reference.kind
            failures += [f"eager, graph {graph}: {problem}" for problem in reference.problems]
            for backend in recipe.backends:
                for device in devices:
                    tell(f"comparing {graph}{ARTIFACT_SUFFIX[backend]} on {device}")
                    comparison = _Comparison(graph, backend, device, signature, reference)
                    path = folder.path / f"{graph}{ARTIFACT_SUFFIX[backend]}"
                    try:
                        opened = open_backend(path, signature, backend_options(recipe, backend, device))
                        comparison.compare_all(opened, cases)
                    except BackendError as err:
                        if device != "cpu":
                            raise  # It cannot be had here: that says nothing about the export.
                        comparison.fail("", str(err))
                    results.append(comparison.summary())
                    failures += comparison.failures
        requests, request_failures = compare_requests(recipe, folder)
        failures += request_failures
        certificate = {
            "format": FORMAT,
            "torchport": torchport.__version__,
            "recipe": recipe.name,
            "version": recipe.version,
            "passed": not failures,
            "failures": failures,
            "reference": reference_kinds,
            "bound": {"eager_multiple": EAGER_MULTIPLE, "scale_epsilons": SCALE_EPSILONS},
            "devices": list(devices),
            "machine": platform.machine(),
            "libraries": libraries,
            "binding": bound,
            "requests_compared": requests,
            "sample_request": sample_request(recipe),
            "results": results,
        }
        write_json(folder.parity, certificate)
        return ParityResult(True, certificate, why or "asked for")


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
    changed = differences(before["binding"], bound)
    if changed:
        return f"changed since: {', '.join(changed)}"
    if before["libraries"] != libraries:
        return "a library has changed"
    if before["devices"] != list(devices):
        return "other devices"
    return None


def sample_request(recipe: Recipe) -> dict[str, Any] | None:
    """The recipe's first request, which `torchport infer` and `query` send when given no other."""
    first = recipe_requests(recipe)[0]
    if len(first.content) > SAMPLE_BYTES:
        return None
    body = {"json": first.json} if first.body is None else {"b64": base64.b64encode(first.body).decode()}
    return {"content_type": first.content_type, "params": dict(first.params), **body}


def recipe_requests(recipe: Recipe) -> list[Request]:
    """The recipe's requests.

    Raises:
        RecipeError: requests() fails, gives none, or something else; or tensors that are no arrays.
    """
    with running(recipe.path, "requests"):
        requests = list(recipe.requests() or ())
    if not requests or not all(isinstance(request, Request) for request in requests):
        raise RecipeError(f"{recipe.path.name}: requests() is to give at least one Request(...)")
    for index, request in enumerate(requests):
        if not request.tensors or not all(isinstance(t, np.ndarray) for t in request.tensors.values()):
            raise RecipeError(
                f"{recipe.path.name}: request {index}: tensors are to be numpy arrays by input name"
            )
    return requests


def compare_requests(recipe: Recipe, folder: BuildFolder) -> tuple[int, list[str]]:
    """Whether the handler turns each of the recipe's requests into the tensors that the recipe says."""
    handler = load_handler(recipe, folder.path)
    failures = []
    requests = recipe_requests(recipe)
    for index, request in enumerate(requests):
        where = f"handler {recipe.handler}, request {index}"
        answer = InferenceRequest(request.fields())
        try:
            tensors = handler.decode(answer)
        except Exception as err:  # The handler is a user's code; the reason is what verify is asked for.
            failures.append(f"{where}: {type(err).__name__}: {err}")
            continue
        if set(tensors) != set(request.tensors):
            failures.append(f"{where}: tensors {sorted(tensors)}, expected {sorted(request.tensors)}")
            continue
        for name, expected in request.tensors.items():
            got = tensors[name]
            if got.dtype != expected.dtype or got.shape != expected.shape:
                failures.append(
                    f"{where}: {name!r} is {got.dtype}{list(got.shape)}, expected "
                    f"{expected.dtype}{list(expected.shape)}"
                )
            elif not np.array_equal(got, expected):
                worst = float(np.abs(got.astype(np.float64) - expected.astype(np.float64)).max())
                failures.append(f"{where}: {name!r} differs from the recipe's tensor by up to {worst:.3g}")
    return len(requests), failures


class _Comparison:
    """One graph on one backend and device, over all cases."""

    def __init__(
        self, graph: str, backend: str, device: str, signature: Signature, reference: Reference
    ) -> None:
        self.graph, self.backend, self.device = graph, backend, device
        self.signature, self.reference = signature, reference
        self.failures: list[str] = []
        self._rows: list[dict[str, Any]] = []
        self._decisions = {"compared": 0, "agreed": 0, "ties": 0}
        self._batch_rows = 0

    def fail(self, case: str, problem: str) -> None:
        where = f"{self.backend} on {self.device}, graph {self.graph}"
        self.failures.append(f"{where}{', ' + case if case else ''}: {problem}")

    def compare_all(self, backend: Backend, cases: Sequence[Case]) -> None:
        for case in cases:
            try:
                outputs = backend.run(case.inputs)
                self.signature.check_outputs(outputs)
            except (BackendError, SignatureError) as err:
                self.fail(case.name, str(err))
                continue
            self._compare(case.name, case.name, outputs)
        batch_dim = self.signature.batch_dim
        if batch_dim is None:
            return
        for case in cases:
            if case.compares_rows:
                self._compare_singles(backend, case)

    def _compare_singles(self, backend: Backend, case: Case) -> None:
        """The rows of one batch again, one by one, held against the same reference."""
        rows = min(BATCH_ROWS, case.rows)
        try:
            singles = [
                backend.run({name: array[i : i + 1] for name, array in case.inputs.items()})
                for i in range(rows)
            ]
        except BackendError as err:
            self.fail(f"{case.name}, row by row", str(err))
            return
        outputs = {n: np.concatenate([single[n] for single in singles]) for n in self.signature.outputs}
        self._batch_rows += rows
        self._compare(f"{case.name}, row by row", case.name, outputs, rows)

    def _compare(
        self, label: str, case: str, outputs: Mapping[str, np.ndarray], rows: int | None = None
    ) -> None:
        for name, array in outputs.items():
            truth = self.reference.truth(case, name)
            eager, expected = self.reference.eager(case, name), truth.value
            if rows is not None:
                eager, expected = eager[:rows], expected[:rows]
            if array.shape != eager.shape or array.dtype != eager.dtype:
                self.fail(
                    label,
                    f"output {name!r} is {array.dtype}{list(array.shape)}, eager gives "
                    f"{eager.dtype}{list(eager.shape)}",
                )
                continue
            if array.dtype.kind != "f":
                wrong = int((array != eager).sum())
                self._rows.append({"case": label, "output": name, "unequal": wrong})
                if wrong:
                    self.fail(label, f"output {name!r}: {wrong} of {array.size} values differ from eager's")
                continue
            self._compare_floats(label, name, array, eager, expected, truth)
            self._rows[-1] |= {"eager_error": _short(truth.eager_error), "scale": _short(truth.scale)}
            self._compare_decisions(label, name, array, eager, expected, truth.bound)

    def _compare_floats(
        self,
        label: str,
        name: str,
        array: np.ndarray,
        eager: np.ndarray,
        expected: np.ndarray,
        truth: Truth,
    ) -> None:
        bound = truth.bound
        finite = np.isfinite(eager)
        if not np.array_equal(array[~finite], eager[~finite], equal_nan=True):
            self.fail(label, f"output {name!r}: NaN or Inf is not where eager PyTorch has it")
        error = np.zeros(array.shape)
        with np.errstate(invalid="ignore"):
            error[finite] = np.abs(array[finite].astype(np.float64) - expected[finite])
        stray = finite & ~np.isfinite(array)
        error[stray] = np.inf
        worst = float(error.max(initial=0.0))
        self._rows.append({"case": label, "output": name, "error": _short(worst), "bound": _short(bound)})
        if not worst <= bound:
            at = np.unravel_index(int(error.argmax()), error.shape)
            self.fail(
                label,
                f"output {name!r}: error {worst:.3g} exceeds the bound {bound:.3g}; at "
                f"{[int(i) for i in at]} it is {array[at]:.6g}, the trained model says {expected[at]:.6g}",
            )
        elif truth.channel_bounds is not None:
            over = error.reshape(-1, truth.channel_bounds.size).max(axis=0) / truth.channel_bounds
            channel = int(over.argmax())
            if over[channel] > 1:
                self.fail(
                    label,
                    f"output {name!r}: the error at index {channel} of the last axis is {over[channel]:.3g} "
                    f"times the bound {truth.channel_bounds[channel]:.3g} of that index alone",
                )

    def _compare_decisions(
        self,
        label: str,
        name: str,
        array: np.ndarray,
        eager: np.ndarray,
        expected: np.ndarray,
        bound: float,
    ) -> None:
        """Argmax over the last axis, where that is a fixed number of classes.

        Near ties do not count, nor does what eager float32 itself decides otherwise than in float64.
        """
        shape = self.signature.outputs[name].shape
        classes = shape[-1] if shape else 0
        if not isinstance(classes, int) or classes < 2 or not array.size:
            return
        ranked = np.sort(np.where(np.isfinite(expected), expected, -np.inf), axis=-1)
        with np.errstate(invalid="ignore"):
            clear = (ranked[..., -1] - ranked[..., -2] > 2 * bound) & np.isfinite(expected).all(axis=-1)
        clear = clear & np.isfinite(eager).all(axis=-1) & (eager.argmax(axis=-1) == expected.argmax(axis=-1))
        same = array.argmax(axis=-1) == expected.argmax(axis=-1)
        self._decisions["compared"] += int(clear.sum())
        self._decisions["agreed"] += int((same & clear).sum())
        self._decisions["ties"] += int((~clear).sum())
        wrong = int((clear & ~same).sum())
        if wrong:
            self.fail(label, f"output {name!r}: {wrong} of {int(clear.sum())} decisions (argmax) differ")

    def summary(self) -> dict[str, Any]:
        """What the certificate says of this graph and backend."""
        ratios = [
            row["error"] / row["bound"] if np.isfinite(row["error"]) else np.inf
            for row in self._rows
            if "bound" in row
        ]
        return {
            "graph": self.graph,
            "backend": self.backend,
            "device": self.device,
            "passed": not self.failures,
            "cases": len({row["case"] for row in self._rows}),
            "worst_error_to_bound": _short(max(ratios, default=0.0)),
            "decisions": self._decisions,
            "rows_alone_and_batched": self._batch_rows,
            "comparisons": [
                {k: (str(v) if v == np.inf else v) for k, v in row.items()} for row in self._rows
            ],
        }


def _short(value: float) -> float:
    """Three significant digits: what is said of an error, and the same on a second run."""
    return float(f"{value:.3g}")
