"""The models that a server has, by name and version, and whether it is ready.

    models.find("linear")                # its default version
    models.is_ready

Nothing here waits. What changes the models is in `registry.py`.
"""

from __future__ import annotations

from torchport.server.errors import ModelNotFound, ModelRefused, ModelVersionNotFound, ServiceUnavailable
from torchport.server.models.expected import Expected
from torchport.server.models.life import Life
from torchport.server.models.registration import Model
from torchport.server.models.version import ModelVersion


class RegisteredModels:
    """All models of a server. `expected` are those of the start."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.expected = Expected()
        self.draining = False
        """Whether the server is ending: its health checks fail, and it still answers requests."""
        self._was_emptied = False
        self._leaving: set[ModelVersion] = set()

    @property
    def failures(self) -> dict[str, str]:
        """Archives that were refused at the start, with the reason."""
        return self.expected.failures

    def find(self, name: str, version: str | None = None) -> ModelVersion:
        """A version; the default one if none is named.

        Raises:
            ModelNotFound, ModelVersionNotFound: there is no such version.
            ServiceUnavailable: the server is loading its models, and it may be one of them.
            ModelRefused: the server was started with it, and cannot load it.
        """
        model = self.models.get(name)
        found = model.versions.get(version or model.default) if model is not None else None
        if found is None:
            expected = self.expected.missing(name, version)
            if expected is not None:
                raise expected
            raise ModelNotFound(name) if model is None else ModelVersionNotFound(name, version or "")
        return found

    def has(self, version: ModelVersion) -> bool:
        """Whether this very object is registered; another one may have its name and number by now."""
        model = self.models.get(version.model.name)
        return model is not None and model.versions.get(version.model.version) is version

    def is_model_ready(self, name: str, version: str | None = None) -> bool:
        """Whether a version can answer; one that the server is still loading, or has refused, cannot.

        Raises:
            ModelNotFound, ModelVersionNotFound: there is no such version.
        """
        try:
            return bool(self.find(name, version).pool.ready)
        except (ServiceUnavailable, ModelRefused):
            return False

    def model(self, name: str) -> Model:
        """All versions of a model.

        Raises:
            ModelNotFound, ServiceUnavailable, ModelRefused: as `find`.
        """
        if name not in self.models:
            raise self.expected.missing(name, None) or ModelNotFound(name)
        return self.models[name]

    def versions(self) -> list[ModelVersion]:
        """Every version of every model, as they are now: whoever goes through the list may wait meanwhile."""
        return [version for model in self.models.values() for version in model.versions.values()]

    def _defaults(self) -> list[ModelVersion]:
        return [model.versions[model.default] for model in self.models.values()]

    def serving(self) -> set[ModelVersion]:
        """Every version that may have workers: those being removed are included."""
        return {*self.versions(), *self._leaving}

    @property
    def is_starting(self) -> bool:
        """Whether a model of the start is still being unpacked, or has not had its first worker."""
        return not self.expected.is_over or any(
            version.loaded_at_startup and version.life is Life.STARTING for version in self.versions()
        )

    @property
    def is_healthy(self) -> bool:
        """Whether the start is over, every default version has its minimum of workers, and not all failed."""
        return (
            not self.is_starting
            and not self._all_failed
            and all(len(version.pool.ready) >= version.least_workers for version in self._defaults())
        )

    @property
    def is_ready(self) -> bool:
        """Whether the start is over, every default version can answer, not all failed, and no end has begun.

        A version that was registered later counts from its first worker on: registering one takes no server
        out of service.
        """
        if self.draining or self.is_starting or self._all_failed:
            return False
        counted = [v for v in self._defaults() if v.loaded_at_startup or v.pool.has_been_ready]
        return all(version.is_ready for version in counted)

    @property
    def _all_failed(self) -> bool:
        """Whether all models failed to load at startup, and none has been registered since.

        An orchestrator must not send requests to such a server. Removing all models by the API is no
        failure.
        """
        return bool(self.expected.failures) and not self.models and not self._was_emptied
