"""The variants that a recipe names, and its options for each.

variant_options(recipe, Variant("pt2", "bfloat16"), "cpu").precision      # "bfloat16"
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torchport.recipe.contract import Recipe
from torchport.store.variants import Variant
from torchport_runtime.options import BACKEND_PRECISIONS, BackendOptions

INT8 = Variant("onnxruntime", "int8")
"""INT8 graphs run by ONNX Runtime, on the CPU only."""


def wanted_variants(recipe: Recipe) -> Iterator[Variant]:
    """Every backend of a recipe in every precision that both have; float32 first."""
    for precision in recipe.precisions:
        for backend in recipe.backends:
            if precision in BACKEND_PRECISIONS[backend]:
                yield Variant(backend, precision)


def is_optional(recipe: Recipe, variant: Variant) -> bool:
    """Whether the recipe accepts that a variant cannot be exported or verified."""
    return variant.backend in recipe.optional_backends or variant.precision in recipe.optional_precisions


def backend_options(recipe: Recipe, backend: str, device: str | None = None) -> BackendOptions:
    """The recipe's options for another backend in float32.

    `device` replaces the recipe's, if given. Options that the backend or device does not have are left
    out.
    """
    own = recipe.options.to_json()
    own.pop("shadow", None)
    changes = {"backend": backend, "precision": "float32"} | ({"device": device} if device else {})
    if backend != "onnxruntime":
        own.pop("io_binding", None)
    if backend != "onnxruntime" or (device or recipe.options.device) == "cpu":
        own.pop("tensorrt", None)
    return BackendOptions(**{**own, **changes})


def variant_options(recipe: Recipe, variant: Variant, device: str | None = None) -> BackendOptions:
    """The recipe's options for a variant: `backend_options` in its precision."""
    return replace(backend_options(recipe, variant.backend, device), precision=variant.precision)
