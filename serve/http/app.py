"""The application that answers HTTP: the routes of all operations, and those of the server itself."""

from collections.abc import Mapping
from http import HTTPStatus
from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from fuseline.serve.http import classify_routes, console_routes, open_inference_routes
from fuseline.serve.http.accept import prefers
from fuseline.serve.http.http_answers import CLOSE, JSON_TYPE, json_answer
from fuseline.serve.http.http_services import HttpServices
from fuseline.serve.http.openapi import openapi_document
from fuseline.serve.http.operations import Operation, answered_by, not_found, routed, routes_of
from fuseline.serve.http.schemas import json_content, object_schema
from fuseline.serve.listening.addresses import join_address
from fuseline.serve.metrics.exposition import OPEN_METRICS, TEXT, content_type
from fuseline.serve.settings import Settings

PROBES = frozenset((b"/metrics", b"/healthz", b"/livez", b"/readyz", b"/v2/health/live", b"/v2/health/ready"))
"""Paths that are answered also while the event loop hangs, by `StandIn`."""


def http_app(services: HttpServices) -> ASGIApp:
    """Return the ASGI application that answers, for `services`, the operations that their settings have.

    Errors are `{"error": message}` with their status. An unknown path and another method are among them.
    """
    return routed(routes_of(operations_with(services.settings), services), not_found)


def operations_with(settings: Settings) -> tuple[Operation, ...]:
    """Return all that the HTTP port of a server with these settings answers."""
    return OPERATIONS if settings.has_console else tuple(its for its in OPERATIONS if its not in _CONSOLE)


async def _index(services: HttpServices, request: Request) -> Response:
    if services.settings.has_console and prefers(request.headers.get("accept", ""), "text/html", JSON_TYPE):
        return console_routes.page(request)
    host, port = request.scope["server"]
    prefix = request.scope.get("root_path", "")
    address = f"{request.scope['scheme']}://{join_address(host, port)}{prefix}"
    # Who has shown no token, which this path asks of nobody, need not know the version.
    told = {} if services.gate is not None else {"version": version("fuseline")}
    return json_answer(
        {
            "name": "fuseline",
            **told,
            "classify": f"curl --data-binary @cat.jpg '{address}/v1/classify?top_k=3'",
            "models": "/v1/models",
            "open_inference_protocol": "/v2",
            "openapi": "/openapi.json",
            "metrics": "/metrics",
            "live": "/livez",
            "ready": "/readyz",
        }
    )


async def _openapi(services: HttpServices, _request: Request) -> Response:
    return json_answer(openapi_document(operations_with(services.settings)))


async def _metrics(services: HttpServices, request: Request) -> Response:
    open_metrics = prefers(request.headers.get("accept", ""), OPEN_METRICS, TEXT)
    text = await (services.metrics(open_metrics=True) if open_metrics else services.metrics())
    return Response(text, media_type=content_type(open_metrics=open_metrics), headers=CLOSE)


async def _healthz(_services: HttpServices, _request: Request) -> Response:
    return PlainTextResponse("alive\n", headers=CLOSE)


async def _livez(services: HttpServices, _request: Request) -> Response:
    live = services.is_live()
    status = HTTPStatus.OK if live else HTTPStatus.SERVICE_UNAVAILABLE
    return PlainTextResponse("live\n" if live else "the backend hangs\n", status, headers=CLOSE)


async def _readyz(services: HttpServices, _request: Request) -> Response:
    ready = services.is_ready()
    status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
    return PlainTextResponse("ready\n" if ready else "not ready\n", status, headers=CLOSE)


_TEXT: Mapping[str, object] = {"text/plain": {"schema": {"type": "string"}}}

_CONSOLE = console_routes.OPERATIONS

OPERATIONS: tuple[Operation, ...] = (
    *open_inference_routes.OPERATIONS,
    *classify_routes.OPERATIONS,
    *_CONSOLE,
    Operation(
        "GET",
        ("/",),
        "What is here; for who prefers HTML, the page that shows the server at work.",
        answered_by(_index),
        json_content(object_schema({})) | {"text/html": {"schema": {"type": "string"}}},
    ),
    Operation("GET", ("/openapi.json",), "This document.", answered_by(_openapi), json_content(object_schema({}))),
    Operation(
        "GET",
        ("/metrics",),
        "Counters, in Prometheus' text format, or in OpenMetrics for who prefers it.",
        answered_by(_metrics),
        dict(_TEXT) | {"application/openmetrics-text": {"schema": {"type": "string"}}},
    ),
    Operation("GET", ("/healthz",), "Whether the process lives.", answered_by(_healthz), dict(_TEXT)),
    Operation("GET", ("/livez",), "Whether the backend makes progress.", answered_by(_livez), dict(_TEXT)),
    Operation("GET", ("/readyz",), "Whether requests are answered.", answered_by(_readyz), dict(_TEXT)),
)
"""All that an HTTP port answers; that of a server without the page, but for what is the page's."""
