"""What is known of a call that came over HTTP."""

from starlette.types import Scope

from fuseline.serve.batching.requests import Caller
from fuseline.serve.services.call_context import CallContext
from fuseline.serve.services.priority import priority_text


def call_of_scope(scope: Scope) -> CallContext:
    """Return what is known of the call that an ASGI `scope` describes."""
    client = scope.get("client")
    headers = ((name.decode("latin-1"), value) for name, value in scope["headers"])
    return CallContext(caller=Caller(client[0] if client else ""), priority=priority_text(headers))
