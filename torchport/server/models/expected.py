"""The models that a server was started with: still loading, or refused with a reason.

expected.refused(Registration(url="linear-1.0.mar"), "not a .mar file")
expected.missing("linear", "1.0")    # the error for a request to a model that is not registered
expected.is_over = True              # all that was asked for is registered or refused
"""

from __future__ import annotations

from torchport.server.errors import ApiError, ModelRefused, ServiceUnavailable
from torchport.server.models.registration import Registration
from torchport.store.folders import archive_identity


class Expected:
    """`is_over` says whether every archive of the start has been registered or refused."""

    def __init__(self) -> None:
        self.is_over = False
        self.failures: dict[str, str] = {}
        """Archives that were refused at the start, with the reason."""
        self._refused: dict[tuple[str, str], str] = {}

    def refused(self, asked: Registration, reason: str) -> None:
        """Note an archive that cannot be served. The model's name is the asked one, or the file's."""
        self.failures[asked.url] = reason
        name, number = archive_identity(asked.url)
        self._refused[asked.model_name or name, number] = reason

    def registered(self, name: str, number: str) -> None:
        """Forget why a version was refused: it is there now."""
        self._refused.pop((name, number), None)

    def missing(self, name: str, number: str | None) -> ApiError | None:
        """The error for a request to a version that is not registered; None if it was not asked for.

        While the server loads its models, every unknown name may be one of them: an archive is read before
        its name is known.
        """
        for (refused, version), reason in self._refused.items():
            if refused == name and number in (None, "", version):
                return ModelRefused(f'Model "{name}" cannot be loaded: {reason}')
        if not self.is_over:
            return ServiceUnavailable(f'Model "{name}": the server is loading its models: try again later')
        return None
