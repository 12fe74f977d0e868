"""What is known of a call that came over HTTP."""

from starlette.types import Scope

from fuseline.serve.batching.requests import Caller
from fuseline.serve.services.call_context import CallContext
from fuseline.serve.services.priority import priority_text

IDENTITY_KEY = "fuseline.identity"
"""Key of an ASGI scope under which the `Identity` is of who makes the request, where tokens are asked for."""


def call_of_scope(scope: Scope) -> CallContext:
    """Return what is known of the call that an ASGI `scope` describes."""
    if (identity := scope.get(IDENTITY_KEY)) is not None:
        caller = identity.client
    else:
        client = scope.get("client")
        caller = client[0] if client else ""
    headers = ((name.decode("latin-1"), value) for name, value in scope["headers"])
    return CallContext(caller=Caller(caller), priority=priority_text(headers))
