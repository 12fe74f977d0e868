"""How large a request may be on its way through Ray to a replica."""

from collections.abc import Mapping

from fuseline.serve.errors import RequestError

_TRANSPORT_LIMIT = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
_TRANSPORT_DEFAULT = 4 * 2**20
_OVER_GRPC = ("RAY_SERVE_PROXY_USE_GRPC", "RAY_SERVE_USE_GRPC_BY_DEFAULT")
"""Switches by which Ray's proxies give requests to replicas over gRPC, instead of calls of an actor."""


def check_size(size: int, most: int) -> None:
    """Raise `RequestError` for a message of more than `most` bytes: Ray's proxy by itself takes up to 2 GiB."""
    if size > most:
        raise RequestError(
            f"the message has {size} bytes, more than {most}, the most that is taken; send fewer images in a request"
        )


def transport_warning(environment: Mapping[str, str], most: int) -> str | None:
    """Return what to say where Ray loses requests of up to `most` bytes on their way to a replica; None: nothing.

    Ray answers such a request by INTERNAL, in several lines, and no replica sees it.
    """
    if environment.get(_OVER_GRPC[0]) == "0" or not any(environment.get(switch) == "1" for switch in _OVER_GRPC):
        return None
    try:
        limit = int(environment.get(_TRANSPORT_LIMIT, _TRANSPORT_DEFAULT))
    except ValueError:
        return None
    if limit >= most:
        return None
    return (
        f"Ray's proxies give this replica requests of at most {limit} bytes, and max_message_mb allows {most}: larger "
        f"ones fail with INTERNAL; set {_TRANSPORT_LIMIT}={most} on every node, before Ray starts"
    )
