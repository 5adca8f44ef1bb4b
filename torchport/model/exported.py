"""Backends and variants that the export stage made of a recipe.

exported_variants(recipe, folder)                # [Variant("torchscript"), Variant("onnxruntime"), ...]
not_exported(folder)                             # {"pt2": "why it could not be made"}
"""

from __future__ import annotations

from torchport.recipe.contract import Recipe
from torchport.recipe.variants import wanted_variants
from torchport.store.folders import BuildFolder
from torchport.store.variants import Variant


def exported_backends(recipe: Recipe, folder: BuildFolder) -> list[str]:
    """The recipe's backends, without optional ones that failed to export."""
    failed = (folder.export_record() or {}).get("failed", {})
    return [backend for backend in recipe.backends if backend not in failed]


def exported_variants(recipe: Recipe, folder: BuildFolder) -> list[Variant]:
    """The recipe's variants, without optional ones that failed to export."""
    failed = set(not_exported(folder))
    return [v for v in wanted_variants(recipe) if not {v.backend, str(v)} & failed]


def not_exported(folder: BuildFolder) -> dict[str, str]:
    """Optional backends and variants that failed to export, each with its reason."""
    record = folder.export_record() or {}
    return {**record.get("failed", {}), **record.get("failed_precisions", {})}
