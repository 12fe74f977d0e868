"""gRPC calls that come by Ray's proxy, answered by the services of a server core."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import grpc
from google.protobuf.message import Message

from fuseline.deploy.ray.message_limits import check_size
from fuseline.deploy.ray.rpc_context import CallEnded, ProxyContext, RpcContext
from fuseline.serve.access.gate import Gate
from fuseline.serve.services.calls import abort_by
from fuseline.serve.services.grpc_gate import GuardedHandlers
from fuseline.serve.services.grpc_messages import CheckedHandlers

if TYPE_CHECKING:
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler


class Serialized(NamedTuple):
    """An answer as Ray takes it: what can be serialized."""

    data: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802 protobuf's name
        """Return the bytes."""
        return self.data


NOTHING = Serialized(b"")
"""What goes with a status that is an error: gRPC sends no message then."""


class _Details(NamedTuple):
    """A `grpc.HandlerCallDetails`."""

    method: str
    invocation_metadata: Sequence[tuple[str, str | bytes]]


class RpcDoor:
    """Takes services as a gRPC server does, and answers calls by the name of their method, as Ray's proxy has it."""

    def __init__(
        self,
        add_services: Callable[[Any], None],
        gate: Gate | None,
        *,
        max_message_bytes: int,
        last_answers_s: float,
    ) -> None:
        """Answer by what `add_services` adds. `gate` lets calls in by their tokens; None: any call.

        Larger messages than `max_message_bytes` are refused. A stream whose token ends has `last_answers_s` to take the
        answers that it is owed.
        """
        self._max_message_bytes = max_message_bytes
        self._paths: dict[str, str] = {}
        self._handlers: dict[str, Handler] = {}
        self._guarded = None if gate is None else GuardedHandlers(gate, last_answers_s=last_answers_s)
        add_services(CheckedHandlers(self))

    @property
    def methods(self) -> Mapping[str, str]:
        """Path of each method by its name."""
        return self._paths

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Guard the methods of a service, where calls are let in by tokens."""
        if self._guarded is not None:
            self._guarded.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Take the methods of a service. No two services may have a method of the same name."""
        for name, handler in handlers.items():
            assert name not in self._paths, f"{service}/{name} and {self._paths[name]} have one name"
            self._paths[name] = f"/{service}/{name}"
            self._handlers[name] = handler

    async def answer(self, name: str, request: Any, proxied: ProxyContext) -> Any:
        """Return the answer to a unary call; where it is an error, `proxied` has the status."""
        context: Any = RpcContext(proxied)
        handler = self._handler(name, proxied)
        try:
            try:
                if handler.unary_unary is None:  # the gate's refusal, which reads nothing
                    refused: Any = handler.stream_stream
                    return await refused(None, context)
                answer: Any = handler.unary_unary
                return await answer(self._bytes_of(request), context)
            except Exception as error:
                if isinstance(error, CallEnded):
                    raise
                await abort_by(context, error)
        except CallEnded:
            return NOTHING

    async def answers(self, name: str, request: Any, proxied: ProxyContext) -> AsyncIterator[Any]:
        """Yield the answers of a streaming call. Raises `CallEnded` where it ends by an error, which `proxied` has.

        `request` is a message, or, of a call that streams both ways, an iterator over them.
        """
        # A service may hold a lock while it writes, so it waits for the client only behind one message.
        messages: asyncio.Queue[Any] = asyncio.Queue(1)
        running = asyncio.create_task(self._run(name, request, RpcContext(proxied, messages.put)))
        coming = asyncio.create_task(messages.get())
        try:
            while True:
                await asyncio.wait((running, coming), return_when=asyncio.FIRST_COMPLETED)
                if not coming.done() and messages.empty():
                    break
                yield await coming
                coming = asyncio.create_task(messages.get())
            await running
        finally:
            running.cancel()
            coming.cancel()
            await asyncio.wait((running, coming))

    async def _run(self, name: str, request: Any, context: Any) -> None:
        handler = self._handler(name, context)
        behaviour: Any = handler.stream_stream or handler.unary_stream
        parse = handler.request_deserializer
        try:
            if handler.stream_stream is not None:
                given: Any = None if request is None else self._messages(request, parse)
            else:
                given = self._bytes_of(request)
            answers = behaviour(given, context)
            if inspect.isasyncgen(answers):
                async for message in answers:
                    await context.write(message)
            else:
                await answers
        except (CallEnded, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 the boundary: an unexpected error is logged and answered as INTERNAL
            await abort_by(context, error)

    def _handler(self, name: str, context: Any) -> Handler:
        if self._guarded is None:
            return self._handlers[name]
        details: Any = _Details(self._paths[name], context.invocation_metadata())
        handler = self._guarded.service(details)
        assert handler is not None
        return handler

    async def _messages(self, requests: AsyncIterator[Any], parse: Callable[[bytes], Any] | None) -> AsyncIterator[Any]:
        async for request in requests:
            if parse is None or not isinstance(request, bytes):
                yield request
            else:
                check_size(len(request), self._max_message_bytes)
                yield parse(request)

    def _bytes_of(self, request: Any) -> bytes:
        """Return a request's bytes: a proxy with generated servicer functions has read them already."""
        data = request.SerializeToString() if isinstance(request, Message) else bytes(request)
        check_size(len(data), self._max_message_bytes)
        return data
