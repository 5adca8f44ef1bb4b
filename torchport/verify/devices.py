"""Finds the devices on which this machine can compare exports."""

from __future__ import annotations

from torchport.errors import BackendError
from torchport.model.exported import exported_variants
from torchport.recipe.contract import Recipe
from torchport.recipe.variants import variant_options
from torchport.store.folders import BuildFolder
from torchport.verify.torch_threads import torch_threads_kept
from torchport_runtime.backends.backend import cuda_device_count, open_backend


def usable_devices(recipe: Recipe, folder: BuildFolder) -> list[str]:
    """The CPU, and CUDA if every exported variant starts on it.

    Raises:
        BackendError: the recipe asks for TensorRT, which does not start here.
    """
    if cuda_device_count() == 0 and not recipe.options.tensorrt:
        return ["cpu"]
    try:
        for graph, signature in recipe.signatures().items():
            for variant in exported_variants(recipe, folder):
                if not variant.takes_gpu:
                    continue
                path = folder.path / variant.artifact(graph)
                with torch_threads_kept():
                    open_backend(path, signature, variant_options(recipe, variant, "cuda"))
    except BackendError:
        if recipe.options.tensorrt:
            raise  # A certificate of the CPU's numbers would say nothing of it.
        return ["cpu"]
    return ["cpu", "cuda"]
