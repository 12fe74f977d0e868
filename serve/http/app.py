"""The application that answers HTTP: routes, and errors as JSON."""

import reprlib

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from fuseline.serve.http.http_services import HttpServices

PROBES = frozenset((b"/metrics", b"/healthz", b"/readyz"))
"""Paths that are answered also while the event loop hangs, by `StandIn`."""

_CLOSE = {"Connection": "close"}
"""A probe gets a connection of its own each time, so that it finds whichever thread or process can answer it."""


def http_app(services: HttpServices) -> Starlette:
    """Return the ASGI application that answers for `services`:

    `/metrics`  the counters, in Prometheus' text format
    `/healthz`  200 as long as the process lives
    `/readyz`   200 while requests are answered, else 503

    Errors are `{"error": message}` with their status.
    """

    async def metrics(_: Request) -> Response:
        return Response(await services.metrics(), media_type=CONTENT_TYPE_LATEST, headers=_CLOSE)

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("alive\n", headers=_CLOSE)

    async def readyz(_: Request) -> Response:
        ready = services.is_ready()
        return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503, headers=_CLOSE)

    return Starlette(
        routes=[Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz)],
        exception_handlers={HTTPException: _error_answer},
    )


async def _error_answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = error.detail
    if error.status_code == 404:
        message = f"there is no {reprlib.repr(request.url.path)} here; there is /metrics, /healthz and /readyz"
    return JSONResponse({"error": message}, error.status_code, headers=error.headers)
