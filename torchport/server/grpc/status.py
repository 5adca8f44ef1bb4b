"""The status codes of gRPC, and the errors that they stand for.

code_of(ModelNotFound("linaer"))     # StatusCode.NOT_FOUND
"""

from __future__ import annotations

from enum import IntEnum

from torchport.server.errors import ApiError, InvalidKey


class StatusCode(IntEnum):
    """How a call ended, as clients are told."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    409: StatusCode.ABORTED,
    413: StatusCode.RESOURCE_EXHAUSTED,
    416: StatusCode.OUT_OF_RANGE,
    429: StatusCode.RESOURCE_EXHAUSTED,
    499: StatusCode.CANCELLED,
    501: StatusCode.UNIMPLEMENTED,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}


def code_of(error: ApiError) -> StatusCode:
    """The gRPC status of an error, by TorchServe's table.

    Unlike there, a missing or wrong key is UNAUTHENTICATED.
    """
    if isinstance(error, InvalidKey):
        return StatusCode.UNAUTHENTICATED
    status = error.http_status
    other = StatusCode.FAILED_PRECONDITION if 400 <= status < 500 else StatusCode.INTERNAL
    return _CODES.get(status, other)
