"""The library's errors, one class per stage.

Their root is in `torchport_runtime.errors`. Exit code 1 says that a check failed, 2 that the user's
input is wrong.
"""

from torchport_runtime.errors import BackendError, BadRequest, SignatureError, TorchportError


class RecipeError(TorchportError):
    """A recipe file that cannot be loaded, or that breaks the contract."""


class MissingParameter(RecipeError):
    """A recipe without its required parameters; `options` names those that are missing."""

    def __init__(self, message: str, options: list[str], task: str) -> None:
        super().__init__(message)
        self.options = options
        self.task = task


class DataError(TorchportError):
    """A data set that is missing, or is not the one that was pinned."""


class TrainingError(TorchportError):
    """Training that failed, or weights that cannot be used."""


class QuantizationError(TorchportError):
    """No INT8 version of a model is good and fast enough.

    Or none can be made.
    """

    exit_code = 1


class ExportError(TorchportError):
    """A model that cannot be exported as its recipe says."""


class StaleError(TorchportError):
    """A stage's input is missing, or is not what the stage before it wrote."""

    exit_code = 1


class ParityError(TorchportError):
    """An export that does not compute what the trained model computes."""

    exit_code = 1


class ArchiveError(TorchportError):
    """A `.mar` file that is damaged, hostile, or not what its certificate says."""


class ServerError(TorchportError):
    """A server that cannot be started, reached or stopped."""


class ModelsMissing(ServerError):
    """Models that a server is to be started with, and that are not in its store."""

    exit_code = 1


class TuningRequestError(TorchportError):
    """A tuning request that is not possible."""


class TuningError(TorchportError):
    """No configuration of a model meets the objective, or none could be measured."""

    exit_code = 1


class RequestError(TorchportError):
    """An answer with an error status.

    `status` is the HTTP status, `reason` the server's message.
    """

    exit_code = 1

    def __init__(self, message: str, status: int, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class CheckError(TorchportError):
    """A served model that does not answer as it does in process."""

    exit_code = 1


__all__ = [
    "ArchiveError",
    "BackendError",
    "BadRequest",
    "CheckError",
    "DataError",
    "ExportError",
    "MissingParameter",
    "ParityError",
    "QuantizationError",
    "RecipeError",
    "RequestError",
    "ServerError",
    "SignatureError",
    "StaleError",
    "TorchportError",
    "TrainingError",
    "TuningError",
    "TuningRequestError",
]
