"""Composes `parity.json`: what was compared, the results, and what they depend on.

basis = Basis(binding(recipe, folder), libraries=library_versions("torch"), devices=("cpu",))
basis.stale_because(folder.certificate())        # "a library has changed"; None while the certificate holds
certificate_of(basis, findings, proof)["passed"]
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchport.model.certificate import FORMAT, RULES, differences
from torchport.model.exported import not_exported
from torchport.recipe.contract import Recipe
from torchport.recipe.requests import sample_request
from torchport.recipe.variants import is_optional
from torchport.store.folders import BuildFolder
from torchport.store.hashing import sha256_bytes
from torchport.store.versions import record_head
from torchport.verify.answers.parity import AnswerParity
from torchport.verify.evidence import FILE
from torchport.verify.outputs.graph import GraphResult
from torchport.verify.outputs.reference import EAGER_MULTIPLE, SCALE_EPSILONS


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What a certificate depends on: the bytes, the libraries and the devices."""

    binding: Mapping[str, Any]
    libraries: Mapping[str, str]
    devices: Sequence[str]

    def stale_because(self, before: dict[str, Any] | None) -> str | None:
        """Why a certificate must be made again; None if it holds."""
        if before is None:
            return "not verified yet"
        if not before["passed"]:
            return "it failed before"
        if before.get("rules") != RULES:
            return "parity asks for more than it did then"
        changed = differences(before["binding"], self.binding)
        if changed:
            return f"changed since: {', '.join(changed)}"
        if before["libraries"] != self.libraries:
            return "a library has changed"
        if before["devices"] != list(self.devices):
            return "other devices"
        return None


@dataclass
class Findings:
    """Everything that was found out about a recipe's exports."""

    recipe: Recipe
    graphs: dict[str, GraphResult] = field(default_factory=dict)
    requests: int = 0
    request_failures: list[str] = field(default_factory=list)
    answers: AnswerParity = field(default_factory=AnswerParity)

    @property
    def failures(self) -> list[str]:
        """Failures of what the recipe cannot do without."""
        found = [failure for graph in self.graphs.values() for failure in graph.failures]
        return found + self.request_failures + self._answer_failures(optional=False)

    @property
    def optional_failures(self) -> list[str]:
        """Failures of optional backends and precisions."""
        found = [failure for graph in self.graphs.values() for failure in graph.optional]
        return found + self._answer_failures(optional=True)

    @property
    def references(self) -> dict[str, str]:
        """The kind of reference of each graph, as `Reference.kind`."""
        return {name: graph.reference.kind for name, graph in self.graphs.items()}

    def _answer_failures(self, *, optional: bool) -> list[str]:
        return [
            failure
            for variant, failures in self.answers.failures.items()
            if is_optional(self.recipe, variant) == optional
            for failure in failures
        ]


def certificate_of(folder: BuildFolder, basis: Basis, found: Findings, evidence: bytes) -> dict[str, Any]:
    """The certificate of one run; `evidence` are the bytes of `evidence.npz`."""
    recipe, failures = found.recipe, found.failures
    refused = {name: graph.reference.refused for name, graph in found.graphs.items()}
    return {
        "format": FORMAT,
        "rules": RULES,
        **record_head(recipe.name, recipe.version),
        "passed": not failures,
        "failures": failures,
        "reference": found.references,
        "bound": {"eager_multiple": EAGER_MULTIPLE, "scale_epsilons": SCALE_EPSILONS},
        "optional_failures": found.optional_failures,
        "refused_by_the_model": {name: cases for name, cases in refused.items() if cases},
        "not_exported": not_exported(folder),
        "devices": list(basis.devices),
        "machine": platform.machine(),
        "libraries": basis.libraries,
        "binding": basis.binding,
        "requests_compared": found.requests,
        "answers_against": found.answers.against,
        "answers": found.answers.summary(),
        "sample_request": sample_request(recipe),
        "evidence": {FILE: sha256_bytes(evidence)},
        "results": [result for graph in found.graphs.values() for result in graph.results],
    }
