"""Root of torchport's errors, and the errors that can happen while serving.

Each class has the exit code of a command that ends with it, and the HTTP status of an answer. A message
says what was given, what was expected, and what to do.
"""


class TorchportError(Exception):
    """Any error of torchport.

    `exit_code` is for commands, `http_status` for answers to requests.
    """

    exit_code = 2
    http_status = 500


class SignatureError(TorchportError):
    """Tensors, or descriptions of tensors, that do not fit a signature."""

    http_status = 400


class BadRequest(TorchportError):
    """One request that cannot be answered; its batch mates can.

    Args:
        message: what was given, what was expected, what to do. The client reads it.
        status: the HTTP status of the answer, 400 to 499.
    """

    http_status = 400

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        if not 400 <= status <= 499:
            raise ValueError(f"status {status} is not one of a client's errors, 400 to 499")
        self.http_status = status


class BackendError(TorchportError):
    """A backend that cannot be opened, or that failed while running."""


def one_line(err: BaseException) -> str:
    """An error's message without its C++ stack, at most 400 characters."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return (" ".join(lines[:3]) or type(err).__name__)[:400]
