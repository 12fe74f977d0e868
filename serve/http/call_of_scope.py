"""What is known of a call that came over HTTP."""

from starlette.types import Scope

from fuseline.serve.batching.requests import Caller
from fuseline.serve.process.server_log import needed
from fuseline.serve.services.call_context import CallContext
from fuseline.serve.services.priority import priority_text
from fuseline.serve.services.request_ids import made_id

REQUEST_ID = "fuseline.request_id"
"""Key of an ASGI scope under which the request's id is, where it has one. It is sent in the head of the answer."""

TRACE = "fuseline.trace"
"""Key of an ASGI scope under which the request's `HttpTrace` is, where it is traced."""

IDENTITY_KEY = "fuseline.identity"
"""Key of an ASGI scope under which the `Identity` is of who makes the request, where tokens are asked for."""


def call_of_scope(scope: Scope) -> CallContext:
    """Return what is known of the call that an ASGI `scope` describes."""
    if (identity := scope.get(IDENTITY_KEY)) is not None:
        caller = identity.client
    else:
        client = scope.get("client")
        caller = client[0] if client else ""
    if needed.ids and REQUEST_ID not in scope:
        scope[REQUEST_ID] = made_id()
    headers = ((name.decode("latin-1"), value) for name, value in scope["headers"])
    return CallContext(
        caller=Caller(caller),
        priority=priority_text(headers),
        request_id=scope.get(REQUEST_ID, ""),
        trace=scope.get(TRACE),
    )
