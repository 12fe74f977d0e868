"""The one table between Fuseline's errors and gRPC statuses, read in both directions, and from those to HTTP's.

A status made here carries the error's class name in the trailing metadata `fuseline-error`, from which a client makes
an error of the same class. gRPC's own statuses, such as that of a connection that can't be made, have no such metadata,
which tells them from this server's.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus

from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus
from grpc import StatusCode

from fuseline.serve import errors

ERROR_METADATA_KEY = "fuseline-error"

DETAILS_METADATA_KEY = "grpc-status-details-bin"
"""Key under which gRPC libraries look for a `google.rpc.Status` with details."""

STATUS_CODE_OF_ERROR: dict[type[errors.FuselineError], StatusCode] = {
    errors.RequestError: StatusCode.INVALID_ARGUMENT,
    errors.ImageError: StatusCode.INVALID_ARGUMENT,
    errors.UnknownModelError: StatusCode.NOT_FOUND,
    errors.UnknownRegionError: StatusCode.NOT_FOUND,
    errors.RegionExistsError: StatusCode.ALREADY_EXISTS,
    # Whoever runs the server can change it, the client can't, and shouldn't try again. UNIMPLEMENTED would say that of
    # a method; it is also what gRPC itself answers, and could not be read back as this error.
    errors.SharedMemoryUnavailableError: StatusCode.FAILED_PRECONDITION,
    errors.UnauthenticatedError: StatusCode.UNAUTHENTICATED,
    errors.ForbiddenError: StatusCode.PERMISSION_DENIED,
    # Whoever runs the server can change its mode, or the package.
    errors.ModelControlError: StatusCode.FAILED_PRECONDITION,
    errors.OverloadedError: StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineError: StatusCode.DEADLINE_EXCEEDED,
    errors.ShuttingDownError: StatusCode.UNAVAILABLE,
    errors.BackendLostError: StatusCode.UNAVAILABLE,
    errors.BackendError: StatusCode.INTERNAL,
}
"""Status code of every error that a request can meet. Any other class is a fault of the server: INTERNAL."""

HTTP_STATUS_OF_CODE: dict[StatusCode, HTTPStatus] = {
    StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    StatusCode.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    StatusCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""HTTP's status of each status code, as google/rpc/code.proto has them.

Overload is 429 and not 503, which a proxy would take for a server that is down and send its other requests elsewhere.
"""


@dataclass(frozen=True, slots=True)
class Status:
    """What a client is told about an error."""

    code: StatusCode
    message: str
    error_name: str
    retry_after_s: float | None = None
    """Seconds after which there is likely to be room; None: not known, or the error is another than overload."""

    @property
    def retry_after_ms(self) -> int:
        """`retry_after_s` rounded up, at least 1; 0 for None."""
        return 0 if self.retry_after_s is None else max(1, math.ceil(1000 * self.retry_after_s))

    @property
    def http_status(self) -> HTTPStatus:
        """Status of the answer where the request came over HTTP."""
        return HTTP_STATUS_OF_CODE[self.code]

    @property
    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Metadata from which `error_from_status` makes the error, with a `google.rpc.RetryInfo` if it has a delay.

        The latter's form is that of gRPC's richer error model (https://grpc.io/docs/guides/error/), which most clients
        read.
        """
        name = (ERROR_METADATA_KEY, self.error_name)
        if self.retry_after_s is None:
            return (name,)
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(self.retry_after_ms)
        rich = RpcStatus(code=self.code.value[0], message=self.message)
        rich.details.add().Pack(retry)
        return name, (DETAILS_METADATA_KEY, rich.SerializeToString())


def status_from_error(error: BaseException, request_id: str = "") -> Status:
    """Return the status that tells the client about `error`, by which the request of that id failed.

    Errors that the caller can act on keep their message. A failed backend and every unexpected error becomes INTERNAL
    with an id only; the error itself is logged under that id.
    """
    code = next(
        (STATUS_CODE_OF_ERROR[c] for c in type(error).__mro__ if c in STATUS_CODE_OF_ERROR), StatusCode.INTERNAL
    )
    if code is not StatusCode.INTERNAL:
        return Status(code, str(error), type(error).__name__, getattr(error, "retry_after_s", None))
    error_id = errors.log_once(error, request_id)
    return Status(
        code,
        f"the server failed on this request; other requests are not affected; its log has more under error {error_id}",
        errors.BackendError.__name__,
    )


def retry_after_from_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> float | None:
    """Return the seconds of the `google.rpc.RetryInfo` in a call's trailing metadata; None where there is none."""
    for key, value in metadata:
        if key == DETAILS_METADATA_KEY and isinstance(value, bytes):
            retry = RetryInfo()
            for detail in RpcStatus.FromString(value).details:
                if detail.Unpack(retry):
                    return float(retry.retry_delay.ToTimedelta().total_seconds())
    return None


def error_from_status(
    code: StatusCode, message: str, error_name: str | None = None, retry_after_s: float | None = None
) -> errors.FuselineError:
    """Return the error that a status stands for: of class `error_name` where known, else by the table in reverse."""
    error = _error_of(code, message, error_name)
    error.retry_after_s = retry_after_s
    error.may_pass = code in {StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED}
    error.is_untaken = isinstance(error, errors.ShuttingDownError)
    return error


def _error_of(code: StatusCode, message: str, error_name: str | None) -> errors.FuselineError:
    for error_class in STATUS_CODE_OF_ERROR:
        if error_class.__name__ == error_name:
            return error_class(message)
    for error_class, class_code in STATUS_CODE_OF_ERROR.items():
        if class_code is code:
            return error_class(message)
    return errors.FuselineError(f"{code.name}: {message}")
