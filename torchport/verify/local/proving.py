"""Verifies an archive again, on the machine that serves it.

Another processor, GPU or library version may compute other numbers than the certificate is about:

    result = verify_archive(store.archive("linear", "1.0"))
    result.record["passed"]

It needs neither the recipe nor the weights: the archive contains test vectors
(`torchport.verify.evidence`). The record is written to the store's `.local_parity/`. A server with
`require_local_parity=true` reads it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchport.archive.contents import inspect_archive
from torchport.archive.local_record import LIBRARIES, devices_of, read_record, record_path, still_holds
from torchport.archive.model import ArchivedModel, load
from torchport.errors import ArchiveError, BackendError, TorchportError
from torchport.store import machine
from torchport.store.files import write_json
from torchport.store.hashing import sha256_file
from torchport.store.variants import Variant
from torchport.store.versions import library_versions
from torchport.verify.answers.equality import same_answer
from torchport.verify.evidence import FILE, Evidence, ExpectedCase, read_evidence
from torchport.verify.outputs.error_statistics import absolute_error, same_values
from torchport.version import __version__
from torchport_runtime.options import BackendOptions


@dataclass(frozen=True)
class LocalParity:
    """Result of verifying an archive on this machine.

    `done` is False if this machine had verified exactly this archive before.
    """

    done: bool
    record: dict[str, Any]


def verify_archive(
    archive: Path, *, force: bool = False, tell: Callable[[str], None] = lambda message: None
) -> LocalParity:
    """Run an archive's test vectors on its backends, on this machine's devices.

    The archive's own runtime and handler run them. The record is written whether it passed or not.

    Raises:
        ArchiveError: not an archive of torchport, damaged, without test vectors, or without a backend that is
            installed here.
    """
    contents = inspect_archive(archive)
    if contents.problems:
        raise ArchiveError(f"{archive.name}: {'; '.join(contents.problems)}: package it again")
    if FILE not in contents.certificate.get("evidence", {}):
        raise ArchiveError(
            f"{archive.name} carries no {FILE}: an earlier torchport made it; verify and package it again"
        )
    own = BackendOptions.from_config(contents.config.get("torchport") or {})
    # What serves first is proven first.
    carried = sorted(contents.variants, key=lambda variant: variant.backend != own.backend)
    variants = [v for v in carried if library_versions(LIBRARIES[v.backend][0])]
    if not variants:
        raise ArchiveError(
            f"{archive.name}: nothing that it carries can be run here: install "
            f"{' or '.join(sorted({LIBRARIES[v.backend][0] for v in carried})) or 'a backend that it has'}"
        )
    digest = sha256_file(archive)
    libraries = {v.backend: library_versions(*LIBRARIES[v.backend]) for v in variants}
    before = read_record(archive)
    if before is not None and not force and still_holds(before, digest, libraries, variants):
        return LocalParity(False, before)
    results, without_gpu = [], []
    for variant in variants:
        devices = devices_of(machine.gpus()) if variant.takes_gpu else []
        if devices and (reason := _why_no_gpu(archive, own, variant)):
            without_gpu.append({**variant.to_json(), "reason": reason})
            devices = []
        results += [_verify_variant(archive, own, variant, device, tell) for device in ("cpu", *devices)]
    record = {
        "torchport": __version__,
        "archive": archive.name,
        "archive_sha256": digest,
        "machine": machine.describe(),
        "libraries": libraries,
        "not_installed": [str(v) for v in carried if v not in variants],
        "without_gpu": without_gpu,
        "passed": all(result["passed"] for result in results),
        "results": results,
    }
    write_json(record_path(archive), record)
    return LocalParity(True, record)


def _load(archive: Path, own: BackendOptions, variant: Variant, device: str) -> ArchivedModel:
    # With TensorRT where the archive itself asks for it, which is ONNX Runtime's on a GPU: what this
    # process's environment says of it is no part of what is written down.
    return load(
        archive,
        backend=variant.backend,
        device=device,
        precision=variant.precision,
        tensorrt=own.tensorrt and variant.backend == "onnxruntime" and device != "cpu",
    )


def _why_no_gpu(archive: Path, own: BackendOptions, variant: Variant) -> str:
    """Why the backend cannot use this machine's GPUs; empty if it can.

    With a reason, `device: auto` uses the CPU.
    """
    try:
        with _load(archive, own, variant, "auto") as model:
            if any(device != "cpu" for device in model.devices.values()):
                return ""
    except (Exception, SystemExit):
        return ""  # It does not come to the CPU: what is wrong, proving it on a GPU says.
    try:
        _load(archive, own, variant, "cuda").close()
    except BackendError as err:
        return str(err)
    return ""


def _verify_variant(
    archive: Path, own: BackendOptions, variant: Variant, device: str, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Result of one variant on one device; a failure if the archive does not load."""
    tell(f"{archive.name}: {variant} on {device}")
    failures: list[str] = []
    worst, cases, requests = 0.0, 0, 0
    try:
        with _load(archive, own, variant, device) as model:
            evidence = read_evidence(model.folder / FILE)
            comparable = [case for case in evidence.cases if case.precision == variant.precision]
            if not comparable:
                failures.append(f"{FILE} holds nothing to prove {variant} by: verify and package it again")
            for case in comparable:
                cases += 1
                for ratio, failure in _compare(model, case):
                    worst = max(worst, ratio)
                    failures += [failure] if failure else []
            if str(variant) == evidence.answered_by:
                requests = len(evidence.requests)
                failures += _other_answers(model, evidence)
    except TorchportError as err:
        failures.append(str(err))
    except (Exception, SystemExit) as err:
        # Of the archive's own handler, whatever it may be: it is a reason why this did not pass.
        failures.append(f"the handler failed: {type(err).__name__}: {err}")
    return {
        **variant.to_json(),
        "device": device,
        "passed": not failures,
        "failures": failures,
        "cases": cases,
        "worst_error_to_bound": float(f"{worst:.3g}") if np.isfinite(worst) else "inf",
        "requests_compared": requests,
    }


def _compare(model: ArchivedModel, case: ExpectedCase) -> Iterator[tuple[float, str]]:
    """For each output the worst error (in bounds) and the failure.

    The failure is empty if the output is right.
    """
    where = f"graph {case.graph}, {case.name}"
    try:
        outputs = model.run(case.graph, case.inputs)
    except BackendError as err:
        yield np.inf, f"{where}: {err}"
        return
    for name, expected in case.expected.items():
        got = outputs.get(name)
        if got is None:
            yield np.inf, f"{where}: there is no output {name!r}"
            continue
        if got.shape != expected.shape:
            yield np.inf, f"{where}: output {name!r} is {list(got.shape)}, expected {list(expected.shape)}"
            continue
        bound = case.bounds.get(name)
        if bound is None:
            wrong = int((got != expected).sum())
            yield (
                (np.inf, f"{where}: output {name!r}: {wrong} of {got.size} values differ")
                if wrong
                else (0, "")
            )
            continue
        finite = np.isfinite(expected)
        if not same_values(got[~finite].astype(np.float64), expected[~finite]):
            yield np.inf, f"{where}: output {name!r}: NaN or Inf is not where the trained model has it"
            continue
        error = float(absolute_error(got, expected, finite).max(initial=0.0))
        too_much = f"{where}: output {name!r}: error {error:.3g} exceeds the bound {bound:.3g}"
        yield error / bound, "" if error <= bound else too_much


def _other_answers(model: ArchivedModel, evidence: Evidence) -> Iterator[str]:
    """Failures of the requests whose answer differs from the verified one."""
    for index, request in enumerate(evidence.requests):
        try:
            answer = model.predict(request.body, **request.params)
        except TorchportError as err:
            yield f"request {index}: {err}"
            continue
        if not same_answer(answer, request.answer):
            proven = str(request.answer)[:200]
            yield f"request {index}: the answer is {str(answer)[:200]}, proven was {proven}"
