"""Operations of the HTTP port: the one table from which requests are routed and /openapi.json is written."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fuseline.serve.http.call_of_scope import REQUEST_ID
from fuseline.serve.http.followed_requests import followed
from fuseline.serve.http.http_answers import error_answer, refusal
from fuseline.serve.http.http_gate import guarded
from fuseline.serve.http.http_services import HttpServices, status_now
from fuseline.serve.http.other_sites import changes_the_server, kept_from_other_sites
from fuseline.serve.http.traced import traced
from fuseline.serve.services.statuses import status_from_error

_REMEMBERED_PATHS = 256
_REMEMBERED_LENGTH = 256

Handler = Callable[[HttpServices, Request], Awaitable[Response]]
"""Answers a request; an error that it raises is answered by its status."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of an operation's query, or a header of its request."""

    name: str
    schema: dict[str, Any]
    description: str
    place: str = "query"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path, or of several that mean the same."""

    method: str
    paths: tuple[str, ...]
    """Paths as starlette writes them."""
    summary: str
    application: Callable[[HttpServices], ASGIApp]
    answers: dict[str, Any]
    """Content of a 200 by media type, as OpenAPI has it; empty: an answer without a body."""
    takes: dict[str, Any] | None = None
    """Content of the request's body by media type; None: it has none."""
    parameters: tuple[Parameter, ...] = ()
    needs_body: bool = True
    """Whether the body, where there is one, may not be empty."""
    infers: bool = False
    """Whether it computes a model, and is traced."""


def routes_of(operations: Iterable[Operation], services: HttpServices) -> list[Route]:
    """Return the routes to `operations`, each of which answers from `services`; a path has one route.

    Another method of a path is refused with 405, and the path's own in the header Allow.
    """
    by_path: dict[str, dict[str, ASGIApp]] = {}
    for operation in operations:
        for path in operation.paths:
            app = operation.application(services)
            if operation.infers and services.console is not None:
                app = followed(app, services.console.source)
            if operation.infers and services.tracer is not None:
                app = traced(app, services.tracer, path)
            if services.gate is not None:
                app = guarded(app, f"{operation.method} {path}", services.gate)
            elif changes_the_server(operation.method, path):
                app = kept_from_other_sites(app, services)
            by_path.setdefault(path, {})[operation.method] = app
    return [Route(path, _PathApplication(methods)) for path, methods in by_path.items()]


def routed(routes: Sequence[Route], default: ASGIApp) -> ASGIApp:
    """Return the application that hands each request to the application of its path's route, or to `default`.

    A path's route is what starlette says, and is remembered: finding it takes as long as the rest of HTTP's work on an
    infer request, and clients repeat few paths.
    """

    def find(path: str) -> tuple[ASGIApp, dict[str, Any]]:
        scope = {"type": "http", "method": "GET", "path": path, "root_path": ""}
        for route in routes:
            match, found = route.matches(scope)
            if match is Match.FULL:
                return route.app, found["path_params"]
        return default, {}

    find_again = lru_cache(maxsize=_REMEMBERED_PATHS)(find)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        app, parameters = (find_again if len(path) <= _REMEMBERED_LENGTH else find)(path)
        scope["path_params"] = dict(parameters)
        await app(scope, receive, send)

    return application


def answered_by(handler: Handler) -> Callable[[HttpServices], ASGIApp]:
    """Return what makes the application that answers by `handler`, and its errors by their statuses."""

    def application_for(services: HttpServices) -> ASGIApp:
        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                answer = await handler(services, Request(scope, receive))
            except HTTPException as error:
                answer = refusal(error.status_code, error.detail)
            except Exception as error:  # noqa: BLE001 the boundary: an unexpected error is logged, and is INTERNAL
                answer = error_answer(status_now(services, status_from_error(error, scope.get(REQUEST_ID, ""))))
            await answer(scope, receive, send)

        return application

    return application_for


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request to a path that is not served."""
    answer = refusal(
        HTTPStatus.NOT_FOUND, "this path is not served; /openapi.json lists those that are, / says where to begin"
    )
    await answer(scope, receive, send)


class _PathApplication:
    """Hands a request to the application of its method."""

    def __init__(self, methods: dict[str, ASGIApp]) -> None:
        self._methods = methods | ({"HEAD": methods["GET"]} if "GET" in methods else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._methods.get(scope["method"])
        if app is not None:
            await app(scope, receive, send)
            return
        allowed = ", ".join(self._methods)
        answer = refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"this path takes {allowed} only", allow=allowed)
        await answer(scope, receive, send)
