"""Errors as they pass from one process of a server to another: with their class, their message, and what was logged."""

import json

from fuseline.serve import errors
from fuseline.serve.errors import BackendError, FuselineError, OverloadedError, log_once


def text_from_error(error: BaseException) -> str:
    """Return what `error_from_text` reads. An error that was not raised on purpose, and one of a backend, is logged."""
    known = error if isinstance(error, FuselineError) else BackendError(str(error))
    error_id = log_once(error) if isinstance(known, BackendError) else known.error_id
    retry_after_s = known.retry_after_s if isinstance(known, OverloadedError) else None
    return json.dumps([type(known).__name__, str(known), error_id, retry_after_s])


def error_from_text(text: str | bytes) -> FuselineError:
    """Return the error that `text_from_error` was given, with its class, its message and the id of its log entry.

    One that was not raised on purpose comes back as `BackendError`.
    """
    class_name, message, error_id, retry_after_s = json.loads(text)
    error_class = getattr(errors, class_name, BackendError)
    error: FuselineError = error_class(message)
    if isinstance(error, OverloadedError):
        error.retry_after_s = retry_after_s
    error.error_id = error_id
    return error
