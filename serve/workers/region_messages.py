"""Parts of the messages in which workers and the supervisor speak of shared memory, as JSON.

A worker sends `join`, `register` and `unregister`, each with a `number`. The supervisor answers the first with `table`,
the others with `answer`. To every worker that has joined it sends `add` and `remove`, with a number of its own, which
the worker answers with `applied`. `answer` and `applied` have an `error`, null if there is none.
"""

import dataclasses
from typing import Any

from fuseline.serve import errors
from fuseline.serve.errors import BackendError, FuselineError
from fuseline.serve.services.statuses import status_from_error
from fuseline.serve.shared_memory.registration import CudaRegistration, Registration, SystemRegistration

Message = dict[str, Any]


def message_from_registration(registration: Registration) -> Message:
    """Return what `registration_from_message` reads."""
    fields = dataclasses.asdict(registration)
    if isinstance(registration, CudaRegistration):
        fields["raw_handle"] = registration.raw_handle.hex()
    return {"region_kind": registration.kind, **fields}


def registration_from_message(message: Message) -> Registration:
    """Return the registration that `message_from_registration` was given."""
    fields = {name: value for name, value in message.items() if name != "region_kind"}
    if message["region_kind"] == CudaRegistration.kind:
        return CudaRegistration(**fields | {"raw_handle": bytes.fromhex(fields["raw_handle"])})
    return SystemRegistration(**fields)


def message_from_error(error: Exception) -> Message:
    """Return what `error_from_message` reads; an unexpected error is logged, and passed on with its id alone."""
    status = status_from_error(error)
    return {"error": status.error_name, "message": status.message}


def error_from_message(message: Message) -> FuselineError:
    """Return the error that `message_from_error` was given, or `BackendError` for an unexpected one."""
    error_class = getattr(errors, message["error"], BackendError)
    error: FuselineError = error_class(message["message"])
    return error
