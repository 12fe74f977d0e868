"""The one table between Fuseline's errors and gRPC statuses, read in both directions.

A status made here carries the error's class name in the trailing metadata `fuseline-error`, so that a client gets back
the very class, and can tell a refusal of this server from one of gRPC's own (no such metadata), such as a connection
that can't be made.
"""

import logging
import uuid
from dataclasses import dataclass

from grpc import StatusCode

from serve import errors

ERROR_METADATA_KEY = "fuseline-error"

STATUS_CODE_OF_ERROR: dict[type[errors.FuselineError], StatusCode] = {
    errors.RequestError: StatusCode.INVALID_ARGUMENT,
    errors.ImageError: StatusCode.INVALID_ARGUMENT,
    errors.UnknownModelError: StatusCode.NOT_FOUND,
    errors.OverloadedError: StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineError: StatusCode.DEADLINE_EXCEEDED,
    errors.ShuttingDownError: StatusCode.UNAVAILABLE,
    errors.BackendLostError: StatusCode.UNAVAILABLE,
    errors.BackendError: StatusCode.INTERNAL,
}
"""Every error that a request can meet. Any other class is a fault of the server: INTERNAL."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Status:
    """What a client is told about an error."""

    code: StatusCode
    message: str
    error_name: str

    @property
    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        """What lets `error_from_status` give the same class back."""
        return ((ERROR_METADATA_KEY, self.error_name),)


def status_from_error(error: Exception) -> Status:
    """Return what to tell the client about `error`.

    Errors that the caller can act on keep their message. A failed backend and everything unforeseen is told as
    INTERNAL with an id only; the error itself is logged here under that id.
    """
    code = next(
        (STATUS_CODE_OF_ERROR[c] for c in type(error).__mro__ if c in STATUS_CODE_OF_ERROR), StatusCode.INTERNAL
    )
    if code is not StatusCode.INTERNAL:
        return Status(code, str(error), type(error).__name__)
    error_id = _logged(error)
    return Status(
        code,
        f"the server failed on this request; other requests are not affected; its log has more under error {error_id}",
        errors.BackendError.__name__,
    )


def _logged(error: Exception) -> str:
    """Log `error` under an id, and return the id. All requests of a failed batch share one error: it is logged once."""
    error_id: str | None = vars(error).get("fuseline_error_id")
    if error_id is None:
        vars(error)["fuseline_error_id"] = error_id = uuid.uuid4().hex[:12]
        _log.error("error %s: %s: %s", error_id, type(error).__name__, error, exc_info=error)
    return error_id


def error_from_status(code: StatusCode, message: str, error_name: str | None = None) -> errors.FuselineError:
    """Return the error that a status stands for: of class `error_name` where known, else the table read backwards."""
    for error_class in STATUS_CODE_OF_ERROR:
        if error_class.__name__ == error_name:
            return error_class(message)
    for error_class, its_code in STATUS_CODE_OF_ERROR.items():
        if its_code is code:
            return error_class(message)
    return errors.FuselineError(f"{code.name}: {message}")
