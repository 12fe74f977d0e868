"""What Ray's gRPC proxy serves: each function is named under `grpc_servicer_functions` of a Serve config.

They add what generated code adds, but for the reading of messages: the proxy hands on a request's bytes as they came.
So a request is read once, in the replica, and bytes that are no message are the client's error, as from `fuseline
serve`. Generated functions, such as `fuseline.protos.classify_pb2_grpc.add_ClassifierServicer_to_server`, work too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from grpc_health.v1 import health_pb2_grpc

from fuseline.protos.classify_pb2_grpc import add_ClassifierServicer_to_server
from fuseline.protos.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server

if TYPE_CHECKING:
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler

SERVICER_FUNCTIONS = (
    "fuseline.deploy.ray.servicers:add_classifier",
    "fuseline.deploy.ray.servicers:add_open_inference",
    "fuseline.deploy.ray.servicers:add_health",
)
"""Paths by which a Serve config names the functions of this module."""


def add_classifier(servicer: Any, server: Any) -> None:
    """Add fuseline.v1.Classifier to `server`."""
    add_ClassifierServicer_to_server(servicer, _Unread(server))  # type: ignore[no-untyped-call]


def add_open_inference(servicer: Any, server: Any) -> None:
    """Add inference.GRPCInferenceService to `server`."""
    add_GRPCInferenceServiceServicer_to_server(servicer, _Unread(server))  # type: ignore[no-untyped-call]


def add_health(servicer: Any, server: Any) -> None:
    """Add grpc.health.v1.Health to `server`, which a replica answers for the model."""
    unread: Any = _Unread(server)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, unread)


class _Unread:
    """Takes a service as generated code adds it to a server, and adds it to one that leaves its requests as bytes."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Do nothing: generated code adds each method a second time, by name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Add the methods of a service, in both of the ways in which generated code does."""
        unread = {name: _unread(handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, unread),))
        self._server.add_registered_method_handlers(service, unread)


def _unread(handler: Handler) -> Handler:
    # Whatever the methods of the servicer are, Ray's proxy puts its own in their place.
    match handler.request_streaming, handler.response_streaming:
        case False, False:
            return _made(grpc.unary_unary_rpc_method_handler, handler.unary_unary, handler)
        case False, True:
            return _made(grpc.unary_stream_rpc_method_handler, handler.unary_stream, handler)
        case True, False:
            return _made(grpc.stream_unary_rpc_method_handler, handler.stream_unary, handler)
        case _:
            return _made(grpc.stream_stream_rpc_method_handler, handler.stream_stream, handler)


def _made(make: Callable[..., Handler], method: Any, like: Handler) -> Handler:
    return make(method, None, like.response_serializer)
