"""The server's errors, named as TorchServe's `{"code", "type", "message"}` names them.

raise ModelNotFound("linaer")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from torchport.errors import TorchportError


class FailedAnswer(Protocol):
    """A worker's answer that is an error: `body` is its message, `error` the error's `type`."""

    status: int
    body: bytes
    error: str


class ApiError(TorchportError):
    """An error whose message the client gets. `kind` is the answer's `type`.

    A class has a status and a kind; an error that a worker reports brings its own.
    """

    http_status = 500
    kind = "InternalServerException"

    def __init__(
        self,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        http_status: int | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(message)
        self.headers = dict(headers or {})
        if http_status is not None:
            self.http_status = http_status
        if kind is not None:
            self.kind = kind

    @classmethod
    def of(cls, answer: FailedAnswer) -> ApiError:
        """The error that a worker answered with."""
        message = answer.body.decode("utf-8", "replace")
        return ApiError(message, http_status=answer.status, kind=answer.error)


class InternalError(ApiError):
    """The model or a worker failed; the client cannot help it."""


class AnswerTooLarge(InternalError):
    """A model's answer has more bytes than `max_response_size`."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"the model's answer is too large: {size} bytes, max_response_size is {limit}")


class InvalidRequest(ApiError):
    http_status = 400
    kind = "BadRequestException"


class ResourceNotFound(ApiError):
    http_status = 404
    kind = "ResourceNotFoundException"

    def __init__(
        self, message: str = "Requested resource is not found, please refer to API document."
    ) -> None:
        super().__init__(message)


class MethodNotAllowed(ApiError):
    """The resource does not take this method. `allowed` are those that it takes; GET stands for HEAD too."""

    http_status = 405
    kind = "MethodNotAllowedException"

    def __init__(self, *allowed: str) -> None:
        super().__init__(
            "Requested method is not allowed, please refer to API document.",
            headers={"Allow": ", ".join(_with_head(allowed))},
        )


def _with_head(methods: Sequence[str]) -> Iterator[str]:
    """The methods, and HEAD behind GET: it is answered where GET is."""
    for method in methods:
        yield method
        if method == "GET" and "HEAD" not in methods:
            yield "HEAD"


class ModelNotFound(ApiError):
    http_status = 404
    kind = "ModelNotFoundException"

    def __init__(self, model: str) -> None:
        super().__init__(f"Model not found: {model}")


class ModelVersionNotFound(ApiError):
    http_status = 404
    kind = "ModelVersionNotFoundException"

    def __init__(self, model: str, version: str) -> None:
        super().__init__(f"Model version: {version} does not exist for model: {model}")


class InvalidModelVersion(ApiError):
    http_status = 403
    kind = "InvalidModelVersionException"


class InvalidKey(ApiError):
    """The token is missing, wrong or expired; 400, as on TorchServe."""

    http_status = 400
    kind = "InvalidKeyException"

    def __init__(self) -> None:
        super().__init__(
            "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
        )


class Forbidden(ApiError):
    """The server's settings forbid the request, or the URL of the model."""

    http_status = 403
    kind = "IllegalArgumentException"


class ArchiveRefused(ApiError):
    """An archive that is damaged, hostile, or not what its certificate says."""

    http_status = 400
    kind = "InvalidModelException"


class ArchiveNotFound(ApiError):
    http_status = 404
    kind = "ModelNotFoundException"


class Conflict(ApiError):
    http_status = 409
    kind = "ConflictStatusException"


class RequestTooLarge(ApiError):
    http_status = 413
    kind = "RequestEntityTooLargeException"


class UnsupportedEncoding(ApiError):
    """The request's body is in an encoding that the server cannot read; `accepted` are those that it can."""

    http_status = 415
    kind = "UnsupportedMediaTypeException"

    def __init__(self, given: str, accepted: Sequence[str]) -> None:
        super().__init__(
            f"Content-Encoding {given[:40]!r}: one of {', '.join(accepted)} is expected, or none",
            headers={"Accept-Encoding": ", ".join(accepted)},
        )


class ServiceUnavailable(ApiError):
    """The server is overloaded or not ready; `Retry-After` says when to retry."""

    http_status = 503
    kind = "ServiceUnavailableException"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after_s)})


class ModelRefused(ApiError):
    """The model cannot be loaded. There is no `Retry-After`: waiting does not help."""

    http_status = 503
    kind = "ServiceUnavailableException"


class DeadlineExceeded(ApiError):
    """The request's time limit passed before the answer was ready."""

    http_status = 504
    kind = "RequestTimeoutException"
