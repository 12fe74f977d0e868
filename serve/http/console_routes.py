"""The page that shows the server at work: its files, what it shows, and the feed that it watches."""

import asyncio
import json
from importlib.metadata import version
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from fuseline.serve.access.gate import Identity
from fuseline.serve.access.passes import Passes
from fuseline.serve.access.roles import ROLE_OF_OPERATION, Role
from fuseline.serve.console.console import Console
from fuseline.serve.console.facts import report_of
from fuseline.serve.console.load import LoadRequest, load_request_from_json
from fuseline.serve.console.page_files import INDEX, page_files
from fuseline.serve.errors import FuselineError
from fuseline.serve.feed.hub import Watcher
from fuseline.serve.feed.source import BATCH_FIELDS, REQUEST_FIELDS
from fuseline.serve.http.call_of_scope import IDENTITY_KEY
from fuseline.serve.http.http_answers import compact_json, json_answer
from fuseline.serve.http.http_services import HttpServices, classify_of, console_of
from fuseline.serve.http.json_text import shortened
from fuseline.serve.http.operations import Operation, answered_by
from fuseline.serve.http.other_sites import refuse_foreign_name
from fuseline.serve.http.schemas import binary_content, json_content, object_schema
from fuseline.serve.model import Model

EVENTS = "/console/events"

_REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
"""What a report may do that is opened by itself: be read. Whoever made the package wrote it."""

_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    # A proxy that gathers the answer before it passes it on would show nothing.
    (b"x-accel-buffering", b"no"),
)


def page(request: Request) -> Response:
    """Return the page itself."""
    return _file(INDEX, request)


async def _page_file(_services: HttpServices, request: Request) -> Response:
    return _file(request.path_params["file"], request)


async def _server(services: HttpServices, request: Request) -> Response:
    console = _console_for(services, request)
    return json_answer(await console.facts(version("fuseline"), _role(request.scope)))


async def _reference(services: HttpServices, request: Request) -> Response:
    console = _console_for(services, request)
    model = _model(console, request)
    images = await asyncio.to_thread(console.reference.of, model)
    height, width, channels = model.pixel_shape
    return json_answer({"height": height, "width": width, "channels": channels, "images": images.answers})


async def _reference_image(services: HttpServices, request: Request) -> Response:
    console = _console_for(services, request)
    images = await asyncio.to_thread(console.reference.of, _model(console, request))
    index = request.path_params["index"]
    if index not in map(str, range(len(images.pixels))):
        raise HTTPException(
            404, f"there are {len(images.pixels)} reference images, from 0 on; {shortened(index)} is none"
        )
    return Response(
        np.ascontiguousarray(images.pixels[int(index)]).tobytes(),
        media_type="application/octet-stream",
        headers={"X-Content-Type-Options": "nosniff"},
    )


async def _report(services: HttpServices, request: Request) -> Response:
    console = _console_for(services, request)
    model = _model(console, request)
    content = await asyncio.to_thread(report_of, model.package)
    if content is None:
        raise HTTPException(404, f"the package of {model.name} has no report that can be read")
    headers = {"Content-Security-Policy": _REPORT_POLICY, "X-Content-Type-Options": "nosniff"}
    return Response(content, media_type="text/html", headers=headers)


async def _load(services: HttpServices, request: Request) -> Response:
    console = _console_for(services, request)
    if console.why_no_load:
        raise HTTPException(403, console.why_no_load)
    if forwarded := next((name for name in ("forwarded", "x-forwarded-for") if name in request.headers), None):
        raise HTTPException(403, f"a load is for this machine alone, and the request was forwarded ({forwarded})")
    asked = load_request_from_json(await request.body())
    model = console.repository.find(asked.model, asked.version)
    images = await asyncio.to_thread(console.reference.of, model)
    result = await console.load.run(asked, images, classify_of(services).classify)
    return json_answer(result.as_json())


def _events(services: HttpServices) -> ASGIApp:
    passes = None if services.gate is None else Passes(services.gate)

    async def begin(services: HttpServices, request: Request) -> Response:
        console = _console_for(services, request)
        if request.scope["http_version"] == "1.0":
            raise HTTPException(505, "the feed goes on without an end, which takes HTTP/1.1")
        watcher = None if request.method == "HEAD" else console.hub.join()
        return _Feed(watcher, console, services, passes, request)

    return answered_by(begin)(services)


class _Feed(Response):
    """The answer that goes on until the server ends, or the token that let the watcher in no longer suffices."""

    def __init__(
        self,
        watcher: Watcher | None,
        console: Console,
        services: HttpServices,
        passes: Passes | None,
        request: Request,
    ) -> None:
        """`watcher` is left at the end; None: only the head is sent."""
        self._watcher = watcher
        self._console = console
        self._services = services
        self._passes = passes
        self._request = request

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
            if self._watcher is not None:
                await self._watch(self._watcher, send)
        finally:
            if self._watcher is not None:
                self._console.hub.leave(self._watcher)
        await send({"type": "http.response.body", "body": b""})

    async def _watch(self, watcher: Watcher, send: Send) -> None:
        async def tell(kind: str, text: str) -> None:
            part = f"event: {kind}\ndata: {text}\n\n".encode()
            await send({"type": "http.response.body", "body": part, "more_body": True})

        def end(error: FuselineError) -> None:
            watcher.end(str(error))

        held, gate, age_s = None, self._services.gate, self._services.settings.max_connection_age_s
        old = "the connection is as old as connections get"
        timer = asyncio.get_running_loop().call_later(age_s, watcher.end, old) if age_s else None
        if self._passes is not None and gate is not None:
            role = ROLE_OF_OPERATION[f"GET {EVENTS}"]
            assert role is not None
            held = gate.pass_of(self._request.headers.getlist("authorization"), role, f"GET {EVENTS}")
            self._passes.add(held, end)
        try:
            await tell("hello", compact_json(_hello(self._console)))
            async for chunk in watcher:
                await tell("chunk", chunk)
            await tell("end", compact_json({"reason": watcher.reason}))
        finally:
            if timer is not None:
                timer.cancel()
            if self._passes is not None and held is not None:
                self._passes.remove(held, end)


def _hello(console: Console) -> dict[str, Any]:
    now, wall = console.times()
    return {
        "boot": console.boot,
        "version": version("fuseline"),
        "now": now,
        "wall": wall,
        "fields": {"batches": BATCH_FIELDS, "requests": REQUEST_FIELDS},
    }


def _file(name: str, request: Request) -> Response:
    file = page_files().get(name)
    if file is None:
        raise HTTPException(404, f"the page has no file {shortened(name)}")
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=dict(file.headers))
    return Response(file.content, headers=dict(file.headers))


def _console_for(services: HttpServices, request: Request) -> Console:
    """Return what answers a request of the page.

    Raises `HTTPException` for a name that another site may have led here, `BackendLostError` where this process can't
    answer.
    """
    refuse_foreign_name(request, services)
    return console_of(services)


def _model(console: Console, request: Request) -> Model:
    return console.repository.find(request.path_params["model"], request.path_params["version"])


def _role(scope: Scope) -> Role:
    identity: Identity | None = scope.get(IDENTITY_KEY)
    return Role.ADMIN if identity is None else identity.role


_OF_VERSION = "/console/models/{model}/versions/{version}"
_OBJECT = json_content(object_schema({}))
_LOAD_BODY = json_content(json.loads(json.dumps(LoadRequest.model_json_schema())))

OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", ("/console/server",), "What the page shows of the server.", answered_by(_server), _OBJECT),
    Operation(
        "GET",
        (EVENTS,),
        "Batches and requests as they happen, as server-sent events, without an end.",
        _events,
        {"text/event-stream": {"schema": {"type": "string"}}},
    ),
    Operation(
        "GET",
        (f"{_OF_VERSION}/reference",),
        "PyTorch's answers for the reference images of a model.",
        answered_by(_reference),
        _OBJECT,
    ),
    Operation(
        "GET",
        (f"{_OF_VERSION}/reference/{{index}}",),
        "The pixels of a reference image: uint8, height x width x channels.",
        answered_by(_reference_image),
        binary_content(),
    ),
    Operation(
        "GET",
        (f"{_OF_VERSION}/report",),
        "The report of a model's package.",
        answered_by(_report),
        {"text/html": {"schema": {"type": "string"}}},
    ),
    Operation(
        "POST",
        ("/console/load",),
        "Has the server send itself requests for reference images, for a few seconds.",
        answered_by(_load),
        _OBJECT,
        takes=_LOAD_BODY,
    ),
    Operation(
        "GET",
        ("/console/{file}",),
        "A file of the page.",
        answered_by(_page_file),
        {kind: {"schema": {"type": "string"}} for kind in ("text/html", "text/css", "text/javascript")},
    ),
)
"""What the page is made of. What it does else it does by the operations that every client has."""
