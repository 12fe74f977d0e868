"""The gate before all gRPC methods of a server."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from grpc.aio import ServicerContext

from fuseline.serve.access.gate import Gate, Pass
from fuseline.serve.access.passes import Passes
from fuseline.serve.access.roles import OPEN, ROLE_OF_RPC
from fuseline.serve.errors import FuselineError
from fuseline.serve.services.admitted_requests import AdmittedRequests
from fuseline.serve.services.call_context import IDENTITY
from fuseline.serve.services.calls import abort_by

if TYPE_CHECKING:
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler

AUTHORIZATION = "authorization"
"""Key of the metadata that holds a call's token."""


class GuardedHandlers(grpc.GenericRpcHandler):
    """The only handler of a gRPC server that asks for tokens: services are added to this, as they are to a server.

    A call is let in or refused when its metadata are there, before any of its messages is read. A method that is not
    in `ROLE_OF_RPC` is refused, whoever calls it. A stream that was let in ends once it would be no longer: what it had
    sent before is answered, then it ends by the error.
    """

    # A handler rather than an interceptor: it is called once a call, at once, and what it costs is the hash and the
    # comparisons, some 2 microseconds.

    def __init__(self, gate: Gate, *, last_answers_s: float) -> None:
        """Guard by `gate`. A stream that is to end has `last_answers_s` to take the answers that it is owed."""
        self._gate = gate
        self._passes = Passes(gate)
        self._last_answers_s = last_answers_s
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._found: dict[str, Handler | None] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Guard `handlers`, as generated code adds them to a server."""
        self._handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Do nothing: generated code adds each method a second time, by a way that would lead past the gate."""

    def service(self, details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the handler of a call: the method's own, or one that refuses. Runs in the call's own task."""
        method = details.method
        role = ROLE_OF_RPC.get(method, OPEN)
        if role is OPEN and method in ROLE_OF_RPC:
            return self._handler(details)
        gate, name = self._gate, method.rpartition("/")[2]
        authorization = [_text(value) for key, value in details.invocation_metadata if key == AUTHORIZATION]
        try:
            identity = gate.identify(authorization)
            if role is OPEN:
                raise gate.unknown("this method")
            gate.check(identity, role, name)
        except FuselineError as error:
            return _refusing(error)
        IDENTITY.set(identity)
        handler = self._handler(details)
        if handler is None or handler.stream_stream is None:
            return handler
        return self._stream(handler, gate.pass_of(authorization, role, name))

    def _stream(self, handler: Handler, held: Pass) -> Handler:
        """Return the handler of one stream: `handler`, until `held` no longer suffices."""
        behaviour: Any = handler.stream_stream
        last_answers_s = self._last_answers_s

        async def run(requests: AsyncIterator[Any], context: ServicerContext[Any, Any]) -> None:
            loop, admitted, time_left = asyncio.get_running_loop(), AdmittedRequests(requests), asyncio.timeout(None)

            def end(error: FuselineError) -> None:
                admitted.end(error)
                time_left.reschedule(loop.time() + last_answers_s)

            try:
                async with time_left:
                    self._passes.add(held, end)
                    try:
                        if inspect.isasyncgenfunction(behaviour):
                            async for answer in behaviour(admitted, context):
                                await context.write(answer)
                        else:
                            await behaviour(admitted, context)
                    finally:
                        self._passes.remove(held, end)
            except (FuselineError, TimeoutError):
                if admitted.error is None:
                    raise
                try:
                    await abort_by(context, admitted.error)
                except (grpc.aio.UsageError, grpc.aio.InternalError):
                    # The service has ended it already, or the client has not even taken the whole first answer.
                    raise asyncio.CancelledError from None

        return grpc.stream_stream_rpc_method_handler(run, handler.request_deserializer, handler.response_serializer)

    def _handler(self, details: grpc.HandlerCallDetails) -> Handler | None:
        method = details.method
        if method not in self._found:
            found = (handler.service(details) for handler in self._handlers)
            self._found[method] = next((handler for handler in found if handler is not None), None)
        return self._found[method]


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def _refusing(error: FuselineError) -> Handler:
    """Return the handler that ends a call, whatever its kind, without reading from it."""

    async def refuse(_requests: AsyncIterator[bytes], context: ServicerContext[Any, Any]) -> None:
        await abort_by(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
