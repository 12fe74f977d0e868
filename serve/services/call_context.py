"""What is known of a call beside its message: who makes it, until when, and how."""

from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple

from grpc.aio import ServicerContext

from fuseline.serve.access.gate import Identity
from fuseline.serve.batching.requests import ANYONE, Caller
from fuseline.serve.process.server_log import needed
from fuseline.serve.services.priority import HEADERS, priority_text
from fuseline.serve.services.request_ids import REQUEST_ID_KEY, made_id, request_id_of
from fuseline.serve.tls.client_name import client_of_auth_context
from fuseline.serve.tracing.tracing import RequestTrace


class CallContext(NamedTuple):
    """What a door, gRPC or HTTP, knows of one call, whatever its protocol."""

    deadline: float | None = None
    """When the call's answer is of no use any more, on the batchers' clock; None: it always is."""
    caller: Caller = ANYONE
    """Who makes the call, as far as queues heed it."""
    priority: str = ""
    """What metadata or headers say of the priority, as they have it; empty: nothing."""
    request_id: str = ""
    """Id of the request in logs, traces and the answer; empty: it came without one, and nothing needs one."""
    trace: RequestTrace | None = None
    """What notes where the request's time goes; None: it is not traced."""

    @property
    def exemplar(self) -> dict[str, str] | None:
        """Labels by which a metric names the request; None where it can't be found again."""
        if self.trace is None and not self.request_id:
            return None
        # A request that is only followed has no trace by which it could be found.
        labels = {"trace_id": self.trace.trace_id} if self.trace is not None and self.trace.trace_id else {}
        # OpenMetrics allows 128 characters in all.
        if self.request_id and sum(map(len, (*labels, *labels.values(), _ID_LABEL, self.request_id))) <= 128:
            labels[_ID_LABEL] = self.request_id
        return labels


_ID_LABEL = "request_id"

_KEPT_PEERS = 4096
"""Number of connections whose callers are kept: most calls come over one that has made others."""

_KEYS = frozenset((REQUEST_ID_KEY, *HEADERS))
"""Keys of metadata that tell something of a call."""

IDENTITY: ContextVar[Identity | None] = ContextVar("fuseline_identity", default=None)
"""Who makes the gRPC call whose task this is, as its token says; None: it has none, or none is asked for."""

NO_CONTEXT = CallContext()
"""Context of a call of which nothing is known."""


def context_of_rpc(
    context: ServicerContext[Any, Any], clock: Callable[[], float], *, has_certificates: bool = False
) -> CallContext:
    """Return what is known of a call that came over gRPC. `clock` is the batchers' own.

    With `has_certificates`, clients show certificates, each of which names one client, wherever it calls from.
    """
    remaining_s = context.time_remaining()
    client = client_of_auth_context(context.auth_context()) if has_certificates else None
    if (identity := IDENTITY.get()) is not None:
        client = identity.client
    metadata = context.invocation_metadata() or ()
    priority = request_id = ""
    for key, _ in metadata:
        # Most calls have none of these, and each look at all of them takes its time.
        if key in _KEYS:
            priority, request_id = priority_text(metadata), request_id_of(metadata)
            break
    return CallContext(
        None if remaining_s is None else clock() + remaining_s,
        _caller_of_peer(context.peer()) if client is None else Caller(client),
        priority,
        request_id or (made_id() if needed.ids else ""),
    )


@lru_cache(_KEPT_PEERS)
def _caller_of_peer(peer: str) -> Caller:
    return Caller(host_of_peer(peer))


def host_of_peer(peer: str) -> str:
    """Return the host in gRPC's name of a peer, such as 127.0.0.1 of `ipv4:127.0.0.1:5000`; `unix` for a Unix socket.

    Connections from one host count as one client, however many it opens.
    """
    kind, _, address = peer.partition(":")
    return address.rpartition(":")[0] or address if kind in {"ipv4", "ipv6"} else kind
