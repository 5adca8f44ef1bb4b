"""The server's errors, by the names that TorchServe gives them in `{"code", "type", "message"}`.

raise ModelNotFound("linaer")
"""

from __future__ import annotations

from collections.abc import Mapping

from torchport.errors import TorchportError


class ApiError(TorchportError):
    """An error that a client gets as it is. `kind` is the answer's `type`."""

    http_status = 500
    kind = "InternalServerException"

    def __init__(self, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.headers = dict(headers or {})


class InternalError(ApiError):
    """The model or a worker failed; the client can do nothing about it."""


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
    """`allowed` are the methods that the resource takes, where it is known at all."""

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
    """No token, or one that is wrong or expired; TorchServe answers 400."""

    http_status = 400
    kind = "InvalidKeyException"

    def __init__(self) -> None:
        super().__init__(
            "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
        )


class Forbidden(ApiError):
    """A URL outside of what models may be loaded from."""

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
    """Try again later; `Retry-After` says when."""

    http_status = 503
    kind = "ServiceUnavailableException"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after_s)})


class DeadlineExceeded(ApiError):
    """The client's own time limit passed before there was an answer."""

    http_status = 504
    kind = "RequestTimeoutException"
