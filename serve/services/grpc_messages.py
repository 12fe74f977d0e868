"""Reads the messages of gRPC calls, so that bytes that are no message are the client's error and nothing else's.

By itself gRPC reads them before it calls a method, and where that fails logs a traceback and answers UNKNOWN: whoever
reaches the port could fill the log.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import ServicerContext

from fuseline.serve.errors import RequestError
from fuseline.serve.services.calls import abort_by

if TYPE_CHECKING:
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler

Context: TypeAlias = ServicerContext[Any, Any]

_TAKE_BYTES = frozenset(("/fuseline.v1.Classifier/Classify", "/inference.GRPCInferenceService/ModelInfer"))
"""Methods that take the bytes of their request and read them by `InferenceCalls.answer`: no call of Python more."""


class CheckedHandlers:
    """Takes services as generated code adds them to a server, and adds them to one; their messages are read here.

    A call whose message can't be read ends with INVALID_ARGUMENT, and nothing is logged. Methods that are coroutines
    over a stream see `DecodeError` where they read it, once for the stream.
    """

    def __init__(self, server: Any) -> None:
        """Add to `server`, which is gRPC's or a `GuardedHandlers`."""
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Do nothing: generated code adds each method a second time, by name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Add the methods of a service, in both of the ways in which generated code does."""
        checked = {name: _checked(f"/{service}/{name}", handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, checked),))
        self._server.add_registered_method_handlers(service, checked)


def unreadable(error: DecodeError) -> RequestError:
    """Return the client's error for a message that could not be read."""
    return RequestError(
        f"what came is no message of this method ({error}); send one of its .proto file, as its generated code "
        "serializes it"
    )


def _checked(method: str, handler: Handler) -> Handler:
    if handler.request_streaming:
        answers = handler.stream_stream
        if answers is None or not inspect.isasyncgenfunction(answers):
            return handler
        return grpc.stream_stream_rpc_method_handler(
            _stream_reader(answers), handler.request_deserializer, handler.response_serializer
        )
    parse = handler.request_deserializer
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(
            _reader(handler.unary_stream, parse), response_serializer=handler.response_serializer
        )
    answer: Any = handler.unary_unary if method in _TAKE_BYTES else _reader(handler.unary_unary, parse)
    return grpc.unary_unary_rpc_method_handler(answer, response_serializer=handler.response_serializer)


def _reader(method: Any, parse: Any) -> Callable[[bytes, Context], Any]:
    async def read(data: bytes, context: Context) -> Any:
        try:
            request = parse(data)
        except DecodeError as error:
            await abort_by(context, unreadable(error))
        return await method(request, context)

    return read


def _stream_reader(method: Any) -> Callable[[AsyncIterator[Any], Context], AsyncIterator[Any]]:
    async def read(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        try:
            async for answer in method(requests, context):
                yield answer
        except DecodeError as error:
            await abort_by(context, unreadable(error))

    return read
