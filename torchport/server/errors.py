"""Errors of the server, as `{"code", "type", "message"}` with TorchServe's names.

raise ModelNotFound("linaer")
"""

from __future__ import annotations

from collections.abc import Mapping

from torchport.errors import TorchportError


class ApiError(TorchportError):
    """An error whose message the client gets; `kind` is the answer's `type`."""

    http_status = 500
    kind = "InternalServerException"

    def __init__(self, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.headers = dict(headers or {})


class InternalError(ApiError):
    """The model or a worker failed; the client cannot help it."""


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
    """The resource does not take this method; `allowed` names those it takes."""

    http_status = 405
    kind = "MethodNotAllowedException"

    def __init__(self, *allowed: str) -> None:
        super().__init__(
            "Requested method is not allowed, please refer to API document.",
            headers={"Allow": ", ".join(allowed)},
        )


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
    """A request that the configuration forbids, such as for a foreign URL."""

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


class ServiceUnavailable(ApiError):
    """The server is overloaded or not ready; `Retry-After` says when to retry."""

    http_status = 503
    kind = "ServiceUnavailableException"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after_s)})


class DeadlineExceeded(ApiError):
    """The request's time limit passed before the answer was ready."""

    http_status = 504
    kind = "RequestTimeoutException"
