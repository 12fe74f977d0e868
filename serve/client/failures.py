"""What an error that a call raised tells about the server."""

from fuseline.serve.balancing.outcomes import Outcome
from fuseline.serve.errors import (
    BackendError,
    BackendLostError,
    DeadlineError,
    FuselineError,
    InputError,
    OverloadedError,
    ShuttingDownError,
)


def outcome_of(error: FuselineError) -> Outcome:
    """Return what `error`, of a call to one server, says about it.

    A deadline that the server itself says it can't meet is an answer; the client's own timer is none.
    """
    if isinstance(error, ShuttingDownError):
        return Outcome.DRAINING
    if isinstance(error, OverloadedError):
        return Outcome.OVERLOADED
    # Of these two classes themselves are errors that no Fuseline server has told.
    is_unreached = type(error) in {InputError, FuselineError} and (error.may_pass or error.is_untaken)
    if is_unreached or isinstance(error, BackendLostError):
        return Outcome.UNREACHABLE
    if isinstance(error, BackendError) or (isinstance(error, DeadlineError) and error.is_unanswered):
        return Outcome.FAILED
    return Outcome.ANSWERED
