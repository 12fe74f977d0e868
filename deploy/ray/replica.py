"""A replica: one model with Fuseline's own batcher, behind Ray's two doors."""

import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import ray
from grpc_health.v1 import health_pb2
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from fuseline.deploy.ray.app_args import AppArgs
from fuseline.deploy.ray.http_door import HttpDoor
from fuseline.deploy.ray.load_report import LoadReport
from fuseline.deploy.ray.message_limits import transport_warning
from fuseline.deploy.ray.rpc_door import RpcDoor
from fuseline.deploy.ray.watchdog import Watchdog
from fuseline.protos import classify_pb2, open_inference_pb2
from fuseline.serve.batching.batcher import Batcher
from fuseline.serve.errors import BackendLostError, FuselineError
from fuseline.serve.http.app import http_app
from fuseline.serve.metrics.inference_statistics import statistics_key
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model_source import PackageModels
from fuseline.serve.process.server_log import end_process
from fuseline.serve.server_core import ServerCore
from fuseline.serve.tracing.tracing import open_tracer

_log = logging.getLogger(__name__)


class Replica:
    """Answers gRPC calls of both protocols and of health, and HTTP, by one `ServerCore`.

    It is constructed only once its model has proven itself on the package's reference, so Ray sends it nothing before.
    Each RPC is a method, named as in its .proto file, which Ray's proxy calls by that name.
    """

    async def __init__(self, args: AppArgs) -> None:  # type: ignore[misc]
        """Load, warm and prove the model.

        Raises `FuselineError`, which names the node, as `load_model` does.
        """
        self._core: ServerCore | None = None
        _log_with_ray()
        settings = args.settings()
        metrics = Metrics(open_tracer())
        source = PackageModels([args.package], settings, metrics, name=args.name)
        core = ServerCore(settings, source, metrics, control=source.control)
        core.watch_liveness()
        try:
            await core.load()
        except FuselineError as error:
            await core.close()
            raise type(error)(f"on node {_node()}: {error}") from None
        except BaseException:
            await core.close()
            raise
        (model,) = core.repository
        assert isinstance(model.batcher, Batcher)
        key = statistics_key(model.name, model.version)
        self._report = LoadReport(model.batcher, lambda: metrics.statistics[key])
        self._batcher = model.batcher
        gate, most_bytes = core.gate, settings.max_message_bytes
        self._rpc_door = RpcDoor(
            core.add_services, gate, max_message_bytes=most_bytes, last_answers_s=settings.drain_timeout_s
        )
        self._http_door = HttpDoor(http_app(core.http_services()), max_body_bytes=most_bytes, gate=gate)
        if (warning := transport_warning(os.environ, most_bytes)) is not None:
            _log.warning("%s", warning)
        core.ready = True
        self._core = core
        self._watchdog = Watchdog(lambda: core.liveness.is_live, _end_process)
        self._watchdog.start()
        _log.info("%s is ready on %s: %s", model.name, model.backend.name, model.lanes.line)

    async def __call__(self, _request: Request) -> Response:
        """Answer an HTTP request."""
        return _Handed(self._http_door)

    async def check_health(self) -> None:
        """Raise `BackendLostError` where no lane computes, so that Ray puts another replica in this one's place."""
        assert self._core is not None
        if not self._core.liveness.is_live or self._batcher.is_stalled:
            raise BackendLostError(f"on node {_node()}: calls of the backend hang, and no lane is left that computes")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what `QueuedRowsPolicy` goes by."""
        return self._report.take()

    def __del__(self) -> Coroutine[Any, Any, None] | None:
        """Return the end of this replica, which Ray awaits once it sends nothing more; the first time only."""
        core, self._core = getattr(self, "_core", None), None
        return None if core is None else _end(core, self._watchdog)


async def _end(core: ServerCore, watchdog: Watchdog) -> None:
    watchdog.stop()
    try:
        await core.finish()
    except TimeoutError:
        _log.error("answers were still owed when the time for the drain was over, and are given up")
    finally:
        await core.close()


def _end_process() -> None:
    """End this process at once: a backend that hangs may be called no more, not even to end."""
    _log.error("a backend hangs, and no lane is left that computes: this replica ends, and Ray starts another")
    end_process(1)


class _Handed(Response):
    """Ray sends what a deployment returns over ASGI: this is answered by an application instead."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _unary(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def call(self: Replica, request: Any, grpc_context: Any) -> Any:
        return await self._rpc_door.answer(name, request, grpc_context)

    return call


def _streaming(name: str) -> Callable[..., AsyncIterator[Any]]:
    async def call(self: Replica, request: Any, grpc_context: Any) -> AsyncIterator[Any]:
        async for answer in self._rpc_door.answers(name, request, grpc_context):
            yield answer

    return call


for _file in (classify_pb2, open_inference_pb2, health_pb2):
    for _service in _file.DESCRIPTOR.services_by_name.values():
        for _method in _service.methods:
            _call: Any = (_streaming if _method.server_streaming else _unary)(_method.name)
            _call.__name__, _call.__qualname__ = _method.name, f"Replica.{_method.name}"
            _call.__doc__ = f"Answer {_service.full_name}/{_method.name}."
            setattr(Replica, _method.name, _call)


def _node() -> str:
    """Return this node's address and id, by which Ray's tools name it."""
    return f"{ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:12]})"


def _log_with_ray() -> None:
    """Let what Fuseline logs stand in the replica's own log, which Ray's tools show."""
    ours, rays = logging.getLogger("fuseline"), logging.getLogger("ray.serve")
    for handler in rays.handlers:
        if handler not in ours.handlers:
            ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
