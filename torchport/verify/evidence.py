"""What an archive carries so that any machine can prove it again, without the model's code or weights.

Inputs, what the trained model makes of them in float64, bounds on the error, and requests with answers:

    evidence = Evidence("onnxruntime")
    evidence.add_cases("main", signature, cases, reference)
    write_bytes(folder.evidence, evidence.to_bytes())
    read_evidence(folder.evidence).cases[0].expected["logits"]

It is an `.npz`: numbered arrays, and an `index` of JSON that says what each is. The real samples come
first, cut to a few rows, then random and extreme inputs, as long as there is room.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport.errors import ArchiveError, BadRequest
from torchport_runtime import Signature, write_arrays
from torchport_runtime.requests.arrays import read_npz

if TYPE_CHECKING:
    from torchport.recipe.contract import Request
    from torchport.verify.outputs.cases import Case
    from torchport.verify.outputs.reference import Reference

FORMAT = 1
FILE = "evidence.npz"
ROWS = 8
"""Of one case, at most."""

MAX_BYTES = 2 << 20
"""Of the arrays of one graph: what every archive is to carry must be small beside a model."""


@dataclass(frozen=True, kw_only=True)
class ProvenCase:
    """Inputs of one graph, and what its outputs have to be. `bounds` are in an output's max-norm; an output
    that has none is to be equal. They are those of one `precision`, and hold for what computes in it."""

    graph: str
    name: str
    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    bounds: dict[str, float]
    precision: str = "float32"

    @property
    def size(self) -> int:
        return sum(array.nbytes for array in (*self.inputs.values(), *self.expected.values()))


@dataclass(frozen=True, kw_only=True)
class ProvenRequest:
    """A request's body, JSON or bytes, its fields, and the answer to it, JSON or bytes."""

    body: Any
    params: dict[str, str]
    answer: Any


@dataclass
class Evidence:
    """Cases and requests, in the order in which they are proven. `answered_by` is the backend whose answers
    the requests have: another's may differ in digits that a client sees."""

    answered_by: str
    cases: list[ProvenCase] = field(default_factory=list)
    requests: list[ProvenRequest] = field(default_factory=list)

    def add_cases(
        self,
        graph: str,
        signature: Signature,
        cases: Sequence[Case],
        reference: Reference,
        precision: str = "float32",
    ) -> None:
        """Take the cases of one graph for which there is room, and the first in any case; none that leaves
        the precision's range, or in which it chooses otherwise than float64 between near equals."""
        left = MAX_BYTES
        judged = [
            case
            for case in cases
            if case.judged == "values"
            and (precision == "float32" or _within(case.name, signature, reference))
        ]
        for case in sorted(judged, key=_worth):
            proven = _proven(graph, signature, case, reference, precision)
            if proven.size <= left or left == MAX_BYTES:
                self.cases.append(proven)
                left -= proven.size

    def add_request(self, request: Request, answer: Any) -> None:
        self.requests.append(
            ProvenRequest(body=request.fields()["body"], params=dict(request.params), answer=answer)
        )

    def to_bytes(self) -> bytes:
        """The file; the same evidence gives the same bytes."""
        arrays: dict[str, np.ndarray] = {}
        names: dict[Any, str] = {}

        def keep(array: np.ndarray) -> str:
            # Precisions share their inputs and truths.
            key = (array.dtype.str, array.shape, array.tobytes())
            if key not in names:
                names[key] = str(len(arrays))
                arrays[names[key]] = array
            return names[key]

        def said(value: Any) -> dict[str, Any]:
            is_bytes = isinstance(value, (bytes, bytearray))
            return {"bytes": keep(np.frombuffer(bytes(value), np.uint8))} if is_bytes else {"json": value}

        index = {
            "format": FORMAT,
            "answered_by": self.answered_by,
            "cases": [
                {
                    "graph": case.graph,
                    "name": case.name,
                    "inputs": {name: keep(array) for name, array in case.inputs.items()},
                    "expected": {name: keep(array) for name, array in case.expected.items()},
                    "bounds": case.bounds,
                    **({"precision": case.precision} if case.precision != "float32" else {}),
                }
                for case in self.cases
            ],
            "requests": [
                {"body": said(request.body), "params": request.params, "answer": said(request.answer)}
                for request in self.requests
            ],
        }
        text = json.dumps(index).encode()
        return write_arrays({"index": np.frombuffer(text, np.uint8), **arrays}, "npz")


def read_evidence(path: Path) -> Evidence:
    """What `Evidence.to_bytes` wrote.

    Raises:
        ArchiveError: the file is missing, damaged, or of a later format.
    """
    try:
        arrays = read_npz(path.read_bytes())
        index = json.loads(arrays["index"].tobytes())
        if index["format"] != FORMAT:
            raise ArchiveError(f"{path.name} is of format {index['format']}: a newer torchport reads it")

        def named(names: Mapping[str, str]) -> dict[str, np.ndarray]:
            return {name: arrays[key] for name, key in names.items()}

        def said(value: Mapping[str, Any]) -> Any:
            return arrays[value["bytes"]].tobytes() if "bytes" in value else value["json"]

        cases = [
            ProvenCase(
                graph=case["graph"],
                name=case["name"],
                inputs=named(case["inputs"]),
                expected=named(case["expected"]),
                bounds={name: float(bound) for name, bound in case["bounds"].items()},
                precision=str(case.get("precision", "float32")),
            )
            for case in index["cases"]
        ]
        requests = [
            ProvenRequest(body=said(r["body"]), params=dict(r["params"]), answer=said(r["answer"]))
            for r in index["requests"]
        ]
        return Evidence(index["answered_by"], cases, requests)
    except (OSError, BadRequest, AttributeError, KeyError, RecursionError, TypeError, ValueError) as err:
        raise ArchiveError(f"{path.name} cannot be read: {err}") from err


def _worth(case: Case) -> int:
    """Real inputs first; the sweep over every dimension last: it looks for faults of the export, and those
    no machine changes."""
    return 0 if case.is_sample else 2 if "=" in case.name else 1


def _within(case: str, signature: Signature, reference: Reference) -> bool:
    """Whether a half precision computes a case as float64 does, but for rounding."""
    return not any(
        reference.overflowed(case, name).any()
        if reference.eager(case, name).dtype.kind == "f"
        else (reference.eager(case, name) != reference.truth(case, name).value).any()
        for name in signature.outputs
    )


def _proven(graph: str, signature: Signature, case: Case, reference: Reference, precision: str) -> ProvenCase:
    def few(array: np.ndarray) -> np.ndarray:
        return array if signature.batch_dim is None else array[:ROWS]

    expected: dict[str, np.ndarray] = {}
    bounds: dict[str, float] = {}
    for name in signature.outputs:
        eager, truth = reference.eager(case.name, name), reference.truth(case.name, name)
        if eager.dtype.kind == "f":
            expected[name], bounds[name] = few(truth.value), float(f"{truth.bound:.3g}")
        else:
            expected[name] = few(eager)
    inputs = {name: few(array) for name, array in case.inputs.items()}
    return ProvenCase(
        graph=graph, name=case.name, inputs=inputs, expected=expected, bounds=bounds, precision=precision
    )
