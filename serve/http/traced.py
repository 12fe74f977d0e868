"""Traces of requests that come over HTTP."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fuseline.serve.http.call_of_scope import REQUEST_ID, TRACE
from fuseline.serve.services.request_ids import made_id
from fuseline.serve.tracing.tracing import Tracer


def traced(app: ASGIApp, tracer: Tracer, route: str) -> ASGIApp:
    """Return `app`, each of whose requests is traced as one for the path `route`, from its head to its answer."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        request_id = scope.setdefault(REQUEST_ID, made_id())
        trace = tracer.begin_http(scope, route, request_id=request_id)
        if trace is None:
            await app(scope, receive, send)
            return
        scope[TRACE] = trace
        status: int | None = None

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, send_noting)
        finally:
            trace.answered(status)

    return application
