"""Backends and variants that the export stage made of a recipe.

exported_variants(recipe, folder)                # [Variant("torchscript"), Variant("onnxruntime"), ...]
not_exported(folder)                             # {"pt2": "why it could not be made"}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchport.recipe.contract import Recipe
from torchport.recipe.variants import wanted_variants
from torchport.store.folders import BuildFolder
from torchport.store.variants import Variant


def exported_backends(recipe: Recipe, folder: BuildFolder) -> list[str]:
    """The recipe's backends without the optional ones that failed."""
    failed = not_exported(folder)
    return [backend for backend in recipe.backends if backend not in failed]


def exported_variants(recipe: Recipe, folder: BuildFolder) -> list[Variant]:
    """The recipe's variants without the optional ones that failed."""
    failed = set(not_exported(folder))
    return [v for v in wanted_variants(recipe) if not {v.backend, str(v)} & failed]


def not_exported(folder: BuildFolder) -> dict[str, str]:
    """Reasons why optional variants could not be exported, by name, such as `pt2 bfloat16`."""
    return failed_variants(folder.export_record() or {})


def failed_variants(record: Mapping[str, Any]) -> dict[str, str]:
    """`not_exported`, read from an export's record."""
    # `failed_precisions` is from before there was one mapping of both.
    return {**record.get("failed", {}), **record.get("failed_precisions", {})}
