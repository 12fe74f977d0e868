"""What is known of a call beside its message: who makes it, until when, and how."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

from grpc.aio import ServicerContext

from fuseline.serve.access.gate import Identity
from fuseline.serve.batching.requests import ANYONE, Caller


class CallContext(NamedTuple):
    """What a door, gRPC or HTTP, knows of one call, whatever its protocol."""

    deadline: float | None = None
    """When the call's answer is of no use any more, on the batchers' clock; None: it always is."""
    caller: Caller = ANYONE
    """Who makes the call, as far as queues heed it."""


IDENTITY: ContextVar[Identity | None] = ContextVar("fuseline_identity", default=None)
"""Who makes the gRPC call whose task this is, as its token says; None: it has none, or none is asked for."""

NO_CONTEXT = CallContext()
"""Context of a call of which nothing is known."""


def context_of_rpc(context: ServicerContext[Any, Any], clock: Callable[[], float]) -> CallContext:
    """Return what is known of a call that came over gRPC. `clock` is the batchers' own."""
    remaining_s = context.time_remaining()
    identity = IDENTITY.get()
    client = host_of_peer(context.peer()) if identity is None else identity.client
    return CallContext(None if remaining_s is None else clock() + remaining_s, Caller(client))


def host_of_peer(peer: str) -> str:
    """Return the host in gRPC's name of a peer, such as 127.0.0.1 of `ipv4:127.0.0.1:5000`; `unix` for a Unix socket.

    Connections from one host count as one client, however many it opens.
    """
    kind, _, address = peer.partition(":")
    return address.rpartition(":")[0] or address if kind in {"ipv4", "ipv6"} else kind
