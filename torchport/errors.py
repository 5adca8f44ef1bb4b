"""The library's errors, one class per stage, under the one root of `torchport_runtime.errors`.

Exit code 1 says that a check said no; 2 that what the user gave is wrong.
"""

from torchport_runtime.errors import BackendError, BadRequest, SignatureError, TorchportError


class RecipeError(TorchportError):
    """A recipe file that cannot be loaded, or that breaks the contract."""


class MissingParameter(RecipeError):
    """A recipe that wants to be told something: `options` are those that it cannot do without."""

    def __init__(self, message: str, options: list[str], task: str) -> None:
        super().__init__(message)
        self.options = options
        self.task = task


class DataError(TorchportError):
    """A data set that cannot be had, or is not the one that was pinned."""


class TrainingError(TorchportError):
    """Training that failed, or weights that cannot be used."""


class QuantizationError(TorchportError):
    """No INT8 version of a model that is both good and fast enough, or none that can be made."""

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


class TuningRequestError(TorchportError):
    """A tuning that is asked for in a way that cannot be done."""


class TuningError(TorchportError):
    """No configuration of a model gives what is asked for, or none could be measured."""

    exit_code = 1


class RequestError(TorchportError):
    """An answer with an error status. `status` is the HTTP status, `reason` the server's words."""

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
