"""What a graph is exported as: a backend, and the precision that it computes in.

Variant("pt2", "bfloat16").artifact("main")          # "main.bfloat16.pt2"
exported_variants(recipe, folder)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torchport.recipe import Recipe
from torchport.store import BuildFolder
from torchport_runtime.options import BACKEND_PRECISIONS, HALF_PRECISIONS, BackendOptions, artifact_suffix


@dataclass(frozen=True)
class Variant:
    """`str` is its name in records and messages: `pt2`, `pt2 bfloat16`."""

    backend: str
    precision: str = "float32"

    def __str__(self) -> str:
        return self.backend if self.precision == "float32" else f"{self.backend} {self.precision}"

    def artifact(self, graph: str) -> str:
        """The name of a graph's file."""
        return f"{graph}{artifact_suffix(self.backend, self.precision)}"

    @property
    def takes_gpu(self) -> bool:
        """Whether it runs on a GPU, too."""
        return BackendOptions(backend=self.backend, precision=self.precision).takes_gpu

    def to_json(self) -> dict[str, str]:
        """As `of` reads it in a record's entry."""
        precision = {} if self.precision == "float32" else {"precision": self.precision}
        return {"backend": self.backend, **precision}

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Variant:
        """That of a record's entry. Before there were precisions all were float32."""
        return cls(result["backend"], result.get("precision", "float32"))


def wanted_variants(recipe: Recipe) -> Iterator[Variant]:
    """Every backend of a recipe in every precision that it names and the backend has; float32 first."""
    for precision in recipe.precisions:
        for backend in recipe.backends:
            if precision in BACKEND_PRECISIONS[backend]:
                yield Variant(backend, precision)


def exported_variants(recipe: Recipe, folder: BuildFolder) -> list[Variant]:
    """Those without what may fail and did."""
    failed = set(not_exported(folder))
    return [v for v in wanted_variants(recipe) if not {v.backend, str(v)} & failed]


def not_exported(folder: BuildFolder) -> dict[str, str]:
    """Optional backends and variants that could not be made, each with its reason."""
    record = folder.export_record() or {}
    return {**record.get("failed", {}), **record.get("failed_precisions", {})}


def is_optional(recipe: Recipe, variant: Variant) -> bool:
    """Whether a recipe goes without it where it cannot be made or proven."""
    return variant.backend in recipe.optional_backends or variant.precision in recipe.optional_precisions


def has_passed(certificate: Mapping[str, Any], variant: Variant) -> bool:
    """Whether a certificate has results of a variant, and all of them passed."""
    own = [result["passed"] for result in certificate["results"] if Variant.of(result) == variant]
    return bool(own) and all(own)


def carried_variants(graphs: Mapping[str, Any], names: set[str]) -> list[Variant]:
    """Those whose artifacts of all graphs are among an archive's names; INT8 is none, it has its own gate."""
    return [
        Variant(backend, precision)
        for backend, precisions in BACKEND_PRECISIONS.items()
        for precision in precisions
        if precision in ("float32", *HALF_PRECISIONS)
        if graphs and all(Variant(backend, precision).artifact(g) in names for g in graphs)
    ]
