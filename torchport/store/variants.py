"""Variant of an exported graph: its backend, and the precision that it computes in.

Variant("pt2", "bfloat16").artifact("main")      # "main.bfloat16.pt2"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchport_runtime.options import BACKEND_PRECISIONS, HALF_PRECISIONS, BackendOptions, artifact_suffix


@dataclass(frozen=True)
class Variant:
    """A backend and a precision.

    `str` gives its name in records and messages: `pt2`, `pt2 bfloat16`.
    """

    backend: str
    precision: str = "float32"

    def __str__(self) -> str:
        return self.backend if self.precision == "float32" else f"{self.backend} {self.precision}"

    def artifact(self, graph: str) -> str:
        """The name of a graph's file in this variant."""
        return f"{graph}{artifact_suffix(self.backend, self.precision)}"

    @property
    def takes_gpu(self) -> bool:
        """Whether it can run on a GPU."""
        return BackendOptions(backend=self.backend, precision=self.precision).takes_gpu

    def to_json(self) -> dict[str, str]:
        """The keys of a record's entry, as `of` reads them."""
        precision = {} if self.precision == "float32" else {"precision": self.precision}
        return {"backend": self.backend, **precision}

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Variant:
        """The variant of a record's entry. Entries without a precision are float32."""
        return cls(result["backend"], result.get("precision", "float32"))


def has_passed(certificate: Mapping[str, Any], variant: Variant) -> bool:
    """Whether a certificate has results of a variant, and all of them passed."""
    own = [result["passed"] for result in certificate["results"] if Variant.of(result) == variant]
    return bool(own) and all(own)


def contained_variants(graphs: Mapping[str, Any], names: set[str]) -> list[Variant]:
    """Variants whose artifacts of all graphs are among an archive's names.

    INT8 is left out, because it has its own certificate.
    """
    return [
        Variant(backend, precision)
        for backend, precisions in BACKEND_PRECISIONS.items()
        for precision in precisions
        if precision in ("float32", *HALF_PRECISIONS)
        if graphs and all(Variant(backend, precision).artifact(g) in names for g in graphs)
    ]
