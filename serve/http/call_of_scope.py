"""What is known of a call that came over HTTP."""

from starlette.types import Scope

from fuseline.serve.batching.requests import Caller
from fuseline.serve.services.call_context import CallContext

IDENTITY_KEY = "fuseline.identity"
"""Key of an ASGI scope under which the `Identity` is of who makes the request, where tokens are asked for."""


def call_of_scope(scope: Scope) -> CallContext:
    """Return what is known of the call that an ASGI `scope` describes."""
    if (identity := scope.get(IDENTITY_KEY)) is not None:
        return CallContext(caller=Caller(identity.client))
    client = scope.get("client")
    return CallContext(caller=Caller(client[0] if client else ""))
