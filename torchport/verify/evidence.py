"""Test vectors of an archive: inputs, expected outputs, bounds, requests and answers.

With them any machine can verify the archive, without the model's code or weights. The expected outputs
are the trained model's in float64:

    evidence = Evidence("onnxruntime")
    evidence.add_cases("main", signature, cases, reference)
    write_bytes(folder.evidence, evidence.to_bytes())
    read_evidence(folder.evidence).cases[0].expected["logits"]

The file is an `.npz`: numbered arrays, and an `index` of JSON that names each. Real samples come first,
then random and extreme inputs, then other sizes, until `MAX_BYTES` are used up.
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
"""Maximum rows that are kept of one case; further rows are cut off."""

MAX_BYTES = 2 << 20
"""Maximum bytes of the arrays of one graph in one precision. Cases beyond it are left out: every archive
contains the test vectors, so that they must be small compared with a model."""


@dataclass(frozen=True, kw_only=True)
class ExpectedCase:
    """Inputs and expected outputs of one graph.

    `bounds`: maximum absolute error per output, for a backend that computes in `precision`. Outputs
    without a bound must match exactly.
    """

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
class ExpectedRequest:
    """A request and its expected answer.

    `body` and `answer` are JSON or bytes each; `params` are the request's other fields.
    """

    body: Any
    params: dict[str, str]
    answer: Any


@dataclass
class Evidence:
    """Test vectors of one archive, in the order in which they are checked.

    `answered_by` is the backend that gave the requests' answers. Another backend's answers may differ in
    digits that a client sees.
    """

    answered_by: str
    cases: list[ExpectedCase] = field(default_factory=list)
    requests: list[ExpectedRequest] = field(default_factory=list)

    def add_cases(
        self,
        graph: str,
        signature: Signature,
        cases: Sequence[Case],
        reference: Reference,
        precision: str = "float32",
    ) -> None:
        """Add the cases of one graph that fit into `MAX_BYTES`.

        The first one is always added. Cases must be judged by their values. In a half precision, cases
        are left out that overflow it, and cases in which it chooses otherwise than float64 between near
        equals.
        """
        left = MAX_BYTES
        judged = [
            case
            for case in cases
            if case.judged == "values"
            and (precision == "float32" or _within(case.name, signature, reference))
        ]
        for case in sorted(judged, key=_worth):
            expected = _expected_case(graph, signature, case, reference, precision)
            if expected.size <= left or left == MAX_BYTES:
                self.cases.append(expected)
                left -= expected.size

    def add_request(self, request: Request, answer: Any) -> None:
        self.requests.append(
            ExpectedRequest(body=request.fields()["body"], params=dict(request.params), answer=answer)
        )

    def to_bytes(self) -> bytes:
        """The file's content. The same test vectors give the same bytes."""
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
    """Read what `Evidence.to_bytes` wrote.

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
            ExpectedCase(
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
            ExpectedRequest(body=said(r["body"]), params=dict(r["params"]), answer=said(r["answer"]))
            for r in index["requests"]
        ]
        return Evidence(index["answered_by"], cases, requests)
    except (OSError, BadRequest, AttributeError, KeyError, RecursionError, TypeError, ValueError) as err:
        raise ArchiveError(f"{path.name} cannot be read: {err}") from err


def _worth(case: Case) -> int:
    """Sort key of a case: real inputs first, sweeps over dimensions last.

    Sweeps look for faults of the export, which are the same on every machine.
    """
    return 0 if case.is_sample else 2 if "=" in case.name else 1


def _within(case: str, signature: Signature, reference: Reference) -> bool:
    """Whether a half precision computes a case as float64 does, except for rounding."""
    return not any(
        reference.overflowed(case, name).any()
        if reference.eager(case, name).dtype.kind == "f"
        else (reference.eager(case, name) != reference.truth(case, name).value).any()
        for name in signature.outputs
    )


def _expected_case(
    graph: str, signature: Signature, case: Case, reference: Reference, precision: str
) -> ExpectedCase:
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
    return ExpectedCase(
        graph=graph, name=case.name, inputs=inputs, expected=expected, bounds=bounds, precision=precision
    )
