"""How a model is served: backend, precision, threads, workers, batch size.

Configuration.default_of(recipe)                     # as the recipe says
configuration.model_config(recipe)                   # the whole model-config.yaml with it
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from torchport.recipe.contract import Recipe
from torchport.recipe.variants import backend_options
from torchport_runtime.shadow_options import ShadowOptions

BATCH_SIZES = (1, 2, 4, 8, 16, 32)

Kind = tuple[str, str]
"""A backend and a precision."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """How a model is served.

    `threads` 0 divides the cores among the workers. `workers` 0 leaves their number to the server.
    """

    backend: str
    precision: str
    threads: int
    workers: int
    batch_size: int

    @classmethod
    def default_of(cls, recipe: Recipe) -> Configuration:
        """The recipe's own configuration: its first backend, its options, its serving."""
        return cls(
            backend=recipe.ships[0],
            precision=recipe.options.precision,
            threads=recipe.options.threads,
            workers=recipe.serving.workers or 0,
            batch_size=recipe.serving.batch_size,
        )

    @property
    def kind(self) -> Kind:
        return self.backend, self.precision

    def on(self, cores: int) -> Configuration:
        """The same with the threads and the workers that it has on a machine with `cores` cores."""
        workers = self.workers or max(1, cores // (self.threads or 1))
        return replace(self, workers=workers, threads=self.threads or max(1, cores // workers))

    def alike(self, other: Configuration, cores: int) -> bool:
        """Whether both run the same way on a machine with `cores` cores."""
        return self.on(cores) == other.on(cores)

    def model_config(self, recipe: Recipe, shadow: str | None = None) -> dict[str, Any]:
        """The archive's `model-config.yaml`: TorchServe's keys and the `torchport:` block.

        Raises:
            BackendError: a precision or a shadow that is not known, or that the backend does not have.
        """
        serving = replace(
            recipe.serving, workers=self.workers or None, batch_size=self.batch_size
        ).model_config()
        options = replace(
            backend_options(recipe, self.backend),
            precision=self.precision,
            threads=self.threads,
            shadow=ShadowOptions.read(shadow) if shadow else recipe.options.shadow,
        ).to_json()
        return serving | {"torchport": {**options, "handler": dict(recipe.handler_options)}}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        precision = "" if self.precision == "float32" else f" {self.precision}"
        threads = "all cores" if not self.threads else f"{self.threads} thread{'s'[: self.threads > 1]}"
        workers = f"{self.workers} worker{'s'[: self.workers > 1]} of {threads}"
        if not self.workers:
            workers = "as many workers as fit the cores"
            workers += f", of {threads}" if self.threads else ""
        return f"{self.backend}{precision}, {workers}, batch {self.batch_size}"
