"""How both clients call: their connection's options, and the errors that a failed call raises."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import grpc

from fuseline.serve.addresses import is_local
from fuseline.serve.errors import DeadlineError, FuselineError, InputError, RequestError, ShuttingDownError
from fuseline.serve.services.statuses import ERROR_METADATA_KEY, error_from_status, retry_after_from_metadata


def channel_options(address: str) -> list[tuple[str, int]]:
    """Return the options of a connection to `address`."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    if is_local(address):
        # Else gRPC sends even these through the proxy of `http_proxy`, which looks for them on its own machine.
        options.append(("grpc.enable_http_proxy", 0))
    return options


@contextmanager
def errors_of_the_tree(address: str, timeout_s: float | None) -> Iterator[None]:
    """Raise the error of `fuseline.serve.errors` that the server raised, where a call to `address` in the block fails.

    Raises:
        InputError: no server answers.
        DeadlineError: there is no answer within `timeout_s`.
        RequestError: what is to be sent is no UTF-8 text, or gRPC refuses it.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise _error_from_rpc(error, address, timeout_s) from error
    except UnicodeEncodeError as error:
        raise RequestError(f"{error.object!r} can't be sent: it is no UTF-8 text") from error


def _error_from_rpc(error: grpc.RpcError, address: str, timeout_s: float | None) -> FuselineError:
    # Every error of a call tells its status as a finished call does; the stubs don't say so.
    call = cast(grpc.Call, error)
    code, details = call.code(), call.details() or ""
    metadata = call.trailing_metadata() or ()
    name = next((str(value) for key, value in metadata if key == ERROR_METADATA_KEY), None)
    if name is None and code is grpc.StatusCode.UNAVAILABLE:
        missing = InputError(f"no server answers at {address} ({details}); is `fuseline serve` running there?")
        missing.may_pass = True
        return missing
    if name is None and code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(f"no answer from {address} within {timeout_s:g} s; allow more time")
    if name is None and code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return RequestError(f"gRPC refused the message: {details}")
    if name is None and code is grpc.StatusCode.CANCELLED:
        return ShuttingDownError(f"{address} dropped the call before taking it up, as a server that stops does")
    return error_from_status(code, details, name, retry_after_from_metadata(metadata))
