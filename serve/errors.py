"""Every error that Fuseline raises on purpose; the tree in full:

    FuselineError
    ├── InputError                 what came is wrong; the caller can mend it      (exit code 2)
    │   ├── PackageError               a folder that is no model package, or a damaged one
    │   ├── CheckpointError            a file that is no checkpoint, or one that can't be trusted
    │   ├── ArchitectureError          tensors that are no ResNet that we know
    │   ├── ImageError                 bytes that are no image, or one beyond the bounds
    │   ├── RequestError               a malformed request
    │   ├── UnknownModelError          a model name that is not served
    │   ├── UnknownRegionError         a shared memory region that is not registered
    │   └── RegionExistsError          a name that a shared memory region has already
    ├── BackendUnavailableError    the asked-for runtime is not installed or has no device (exit code 2)
    ├── UnauthenticatedError       a call without a token that the server knows            (exit code 2)
    ├── ForbiddenError             a call that the caller's token doesn't allow            (exit code 2)
    ├── SharedMemoryUnavailableError   the server shares no memory, or none of that kind      (exit code 2)
    ├── ModelControlError          a model that can't be loaded or unloaded while the server runs
    ├── VerificationError          an artifact that differs from PyTorch beyond its bar    (exit code 1)
    ├── PlanError                  a load that no number of servers takes as it is asked   (exit code 1)
    ├── BackendError               the runtime failed on a valid batch
    ├── OverloadedError            the queue is too long, by rows or by time
    ├── DeadlineError              the deadline has passed, or can't be met
    ├── ShuttingDownError          the server is draining
    └── BackendLostError           the process that computes has ended and is started again

A message says what came, what was expected, and what to do. The mapping to gRPC statuses is one table in
`fuseline.serve.services.statuses`; the mapping to exit codes is `exit_code` here.
"""

import logging
import uuid

_log = logging.getLogger(__name__)


class FuselineError(Exception):
    """Base of every error raised on purpose."""

    exit_code = 1
    error_id: str | None = None
    """Id under which `log_once` has logged the error; None: it is not logged."""
    may_pass: bool = False
    """Whether a client met it as UNAVAILABLE or RESOURCE_EXHAUSTED, so that the same call may succeed later."""
    is_untaken: bool = False
    """Whether a client knows that no server has begun the call, so that to make it again repeats nothing."""
    is_unanswered: bool = False
    """Whether a client has waited in vain, so that the error is its own and not the server's."""
    retry_after_s: float | None = None
    """Seconds after which the same call is likely to succeed; None: not known."""


class InputError(FuselineError):
    """What the caller gave is wrong, and the caller can mend it."""

    exit_code = 2


class PackageError(InputError):
    """A folder that is no model package, or a damaged one."""


class CheckpointError(InputError):
    """A file that is no checkpoint, or one that can't be read safely."""


class ArchitectureError(InputError):
    """Tensors that are not a ResNet that Fuseline knows, or not all of one."""


class ImageError(InputError):
    """Bytes that are no image of an accepted format, or an image beyond the stated bounds."""


class RequestError(InputError):
    """A malformed classify request."""


class UnknownModelError(InputError):
    """A model name or version that the server doesn't serve."""


class UnknownRegionError(InputError):
    """A name under which no shared memory region is registered."""


class RegionExistsError(InputError):
    """A name under which a shared memory region is registered already."""


class BackendUnavailableError(FuselineError):
    """The asked-for runtime is not installed, or has no device to run on."""

    exit_code = 2


class SharedMemoryUnavailableError(FuselineError):
    """The server doesn't share memory with its clients, or not of this kind, until it is set up otherwise."""

    exit_code = 2


class UnauthenticatedError(FuselineError):
    """A call without a token that the server knows."""

    exit_code = 2


class ForbiddenError(FuselineError):
    """A call that needs another role than the caller's token has."""

    exit_code = 2


class ModelControlError(FuselineError):
    """A model can't be loaded or unloaded: the server's mode forbids it, or a package was refused. What was served
    before is served still.
    """


class VerificationError(FuselineError):
    """An artifact differs from eager PyTorch beyond its bar."""


class PlanError(FuselineError):
    """No number of servers answers a load within the latencies that are asked for."""


class BackendError(FuselineError):
    """The runtime failed on a valid batch; the next batch runs."""


class OverloadedError(FuselineError):
    """The queue is too long; retry later."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(FuselineError):
    """The request's deadline has passed or can't be met."""


class ShuttingDownError(FuselineError):
    """The server is draining and admits nothing new."""


class BackendLostError(FuselineError):
    """The process that computes has ended and is being started again; retry."""


def log_once(error: BaseException, request_id: str = "") -> str:
    """Log `error` under an id, once, and return the id: all requests of a failed batch share one error.

    The line names the request that failed by it, if that has an id; each further one then has a line of its own.
    """
    if isinstance(error, FuselineError) and error.error_id is not None:
        if request_id:
            _log.error(
                "a request failed by error %s", error.error_id, extra=_of_request(request_id, error_id=error.error_id)
            )
        return error.error_id
    error_id = uuid.uuid4().hex[:12]
    _log.error(
        "error %s: %s: %s",
        error_id,
        type(error).__name__,
        error,
        exc_info=error,
        extra=_of_request(request_id, error_id=error_id),
    )
    if isinstance(error, FuselineError):
        error.error_id = error_id
    return error_id


def _of_request(request_id: str, error_id: str) -> dict[str, str]:
    """Return what `fuseline.serve.process.server_log` shows beside a line's message."""
    return {"request_id": request_id, "error_id": error_id}
