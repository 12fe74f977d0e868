"""How both clients call: their connection's options, and the errors that a failed call raises."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import grpc

from fuseline.serve.client.client_tls import ClientTls
from fuseline.serve.client.tls_failures import found_tls_failure
from fuseline.serve.errors import DeadlineError, FuselineError, InputError, RequestError, ShuttingDownError
from fuseline.serve.listening.addresses import is_local
from fuseline.serve.services.statuses import ERROR_METADATA_KEY, error_from_status, retry_after_from_metadata

_NO_CONNECTION = ("Connection refused", "DNS resolution failed", "No route to host", "No such file")
"""Words of gRPC where nothing has answered at all."""

_NOT_CONNECTED = "failed to connect to all addresses"
"""Words of gRPC where no call was sent, for one of these reasons or another."""


_ONE_OF_SEVERAL = (
    # Pings find out that a host is gone or a process stopped, which leaves its connections open. Only while calls wait.
    ("grpc.keepalive_time_ms", 4000),
    ("grpc.keepalive_timeout_ms", 4000),
    ("grpc.http2.ping_timeout_ms", 4000),
    ("grpc.http2.max_pings_without_data", 0),
    # The time that a connection may take to be made: by default 20 s, for which calls would wait.
    ("grpc.min_reconnect_backoff_ms", 4000),
    # Else a server that was away for long would be found back after up to 2 minutes.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
"""Options of a connection beside which there are others to go to."""


def channel_options(
    address: str, tls: ClientTls | None = None, *, uses_proxy: bool = True
) -> list[tuple[str, int | str]]:
    """Return the options of a connection to `address`, without `uses_proxy` past any proxy."""
    options: list[tuple[str, int | str]] = [] if tls is None else [*tls.channel_options()]
    options += [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    if is_local(address) or not uses_proxy:
        # Else gRPC sends even these through the proxy of `http_proxy`, which looks for them on its own machine.
        options.append(("grpc.enable_http_proxy", 0))
    return options


def channel_to(
    address: str, tls: ClientTls | None, *, uses_proxy: bool = True, one_of_several: bool = False
) -> grpc.Channel:
    """Return a connection to `address`, made by the first call, without `uses_proxy` past any proxy.

    One of several finds out sooner that its server is gone.
    """
    options = [*channel_options(address, tls, uses_proxy=uses_proxy), *(_ONE_OF_SEVERAL if one_of_several else ())]
    if tls is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, tls.channel_credentials(), options)


def async_channel_to(address: str, tls: ClientTls | None, *, one_of_several: bool = False) -> grpc.aio.Channel:
    """Return a connection to `address` of the running event loop, made by the first call; see `channel_to`."""
    options = [*channel_options(address, tls), *(_ONE_OF_SEVERAL if one_of_several else ())]
    if tls is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, tls.channel_credentials(), options)


@contextmanager
def errors_of_the_tree(address: str, timeout_s: float | None, tls: ClientTls | None = None) -> Iterator[None]:
    """Raise the error of `fuseline.serve.errors` that the server raised, where a call to `address` in the block fails.

    Raises:
        InputError: no server answers, or `tls`, or its absence, fails with it. To find out which takes a few seconds.
        DeadlineError: there is no answer within `timeout_s`.
        RequestError: what is to be sent is no UTF-8 text, or gRPC refuses it.
    """
    try:
        yield
    except grpc.RpcError as error:
        reason = found_tls_failure(address, tls) if is_unreached(error) else None
        raise error_from_rpc(error, address, timeout_s, reason) from error
    except UnicodeEncodeError as error:
        raise _unsendable(error) from error


@asynccontextmanager
async def async_errors_of_the_tree(
    address: str, timeout_s: float | None, tls: ClientTls | None = None
) -> AsyncIterator[None]:
    """Do the same as `errors_of_the_tree` for calls of an event loop, which goes on meanwhile."""
    try:
        yield
    except grpc.RpcError as error:
        reason = await asyncio.to_thread(found_tls_failure, address, tls) if is_unreached(error) else None
        raise error_from_rpc(error, address, timeout_s, reason) from error
    except UnicodeEncodeError as error:
        raise _unsendable(error) from error


def _unsendable(error: UnicodeEncodeError) -> RequestError:
    return RequestError(f"{error.object!r} can't be sent: it is no UTF-8 text")


def is_unreached(error: grpc.RpcError) -> bool:
    """Return whether no server was reached, for a reason that may lie in TLS."""
    call = cast(grpc.Call, error)
    if call.code() is not grpc.StatusCode.UNAVAILABLE or _name_of(call.trailing_metadata() or ()) is not None:
        return False
    details = call.details() or ""
    return not any(words in details for words in _NO_CONNECTION)


def _name_of(metadata: Any) -> str | None:
    """Return the name of the error of the tree that the server raised."""
    return next((str(value) for key, value in metadata if key == ERROR_METADATA_KEY), None)


def no_connection(address: str, tls_reason: str) -> InputError:
    """Return the error for a connection that fails for TLS, or for want of it."""
    error = InputError(f"no connection to {address}: {tls_reason}")
    error.is_untaken = True
    return error


def error_from_rpc(
    error: grpc.RpcError, address: str, timeout_s: float | None, tls_reason: str | None
) -> FuselineError:
    """Return the error of the tree for a failed call to `address`; `tls_reason` is what `found_tls_failure` found."""
    # Every error of a call tells its status as a finished call does; the stubs don't say so.
    call = cast(grpc.Call, error)
    code, details = call.code(), call.details() or ""
    metadata = call.trailing_metadata() or ()
    name = _name_of(metadata)
    if tls_reason is not None:
        return no_connection(address, tls_reason)
    if name is None and code is grpc.StatusCode.UNAVAILABLE:
        missing = InputError(f"no server answers at {address} ({details}); is `fuseline serve` running there?")
        missing.may_pass = True
        missing.is_untaken = any(words in details for words in (*_NO_CONNECTION, _NOT_CONNECTED))
        return missing
    if name is None and code is grpc.StatusCode.DEADLINE_EXCEEDED:
        late = DeadlineError(f"no answer from {address} within {timeout_s:g} s; allow more time")
        late.is_unanswered = True
        return late
    if name is None and code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return RequestError(f"gRPC refused the message: {details}")
    if name is None and code is grpc.StatusCode.CANCELLED:
        dropped = ShuttingDownError(f"{address} dropped the call before taking it up, as a server that stops does")
        dropped.is_untaken = True
        return dropped
    told = error_from_status(code, details, name, retry_after_from_metadata(metadata))
    if name is None and code is grpc.StatusCode.UNIMPLEMENTED:
        told.is_untaken = True  # by a server of something else, or a proxy that finds none
    return told
