"""The inference RPCs of one service, whatever their protocol: deadlines, refusals, streams, and the end of a drain."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.message import DecodeError
from grpc import StatusCode
from grpc.aio import ServicerContext

from fuseline.serve.errors import OverloadedError, ShuttingDownError
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.routing.shadows import Shadows
from fuseline.serve.services.call_context import CallContext, context_of_rpc
from fuseline.serve.services.call_limits import CallLimits
from fuseline.serve.services.calls import Calls, abort, return_request_id
from fuseline.serve.services.grpc_messages import unreadable
from fuseline.serve.services.inference import AnswerT, Codec, Inference, RequestT
from fuseline.serve.services.request_ids import made_id
from fuseline.serve.services.statuses import Status, status_from_error
from fuseline.serve.services.stream import MessageT, Stream
from fuseline.serve.services.stream_pace import StreamPace
from fuseline.serve.settings import Settings
from fuseline.serve.tracing.tracing import Tracer


class InferenceCalls:
    """Answers the calls of inference RPCs. An RPC brings its name, under which metrics count it, and its codec.

    Every request is answered once, in full or by one error, and one that fails has no effect on another. A request
    whose client cancels, or whose deadline passes, leaves the queue.
    """

    def __init__(
        self,
        metrics: Metrics,
        settings: Settings,
        clock: Callable[[], float],
        *,
        limits: CallLimits | None = None,
        shadows: Shadows | None = None,
        service: str = "",
    ) -> None:
        """Begin without calls. `clock` is the batchers' own, on which deadlines are.

        `limits` counts the calls of other services too; None: those of this one alone. `shadows` sample the requests.
        `service` is the name of the gRPC service, for traces, which are made where `metrics` has a tracer.
        """
        self._service = service
        self._metrics = metrics
        self._tracer = metrics.tracer
        self._has_certificates = settings.tls_client_ca is not None
        self._settings = settings
        self._clock = clock
        self._limits = CallLimits(settings) if limits is None else limits
        self._shadows = shadows
        self._calls = Calls()
        self._streams: set[Stream[Any, Any, Any]] = set()

    @property
    def refused(self) -> bool:
        """Whether `refuse` was called."""
        return self._calls.refused

    def refuse(self) -> None:
        """Refuse new calls from now on, and read no further from streams."""
        self._calls.refuse()
        for stream in self._streams:
            stream.cut_short()

    async def idle(self) -> None:
        """Return, after `refuse`, once every request that came before has its answer."""
        await self._calls.idle()

    async def answer(
        self, method: str, codec: Codec[RequestT, AnswerT], data: bytes, context: ServicerContext[Any, Any]
    ) -> AnswerT:
        """Answer the request of a unary call, whose message is `data`, or end the call with the status of the error."""
        call = self._call_of(context)
        try:
            request = codec.parse(data)
        except DecodeError as error:
            await abort(context, self._unreadable(method, error, call), call.request_id)
        if self._tracer is not None:
            call = self._traced(method, call, context, self._tracer)
        answer = await self.run(method, codec, request, call)
        if isinstance(answer, Status):
            await abort(context, answer, call.request_id)
        if call.request_id:
            return_request_id(context, call.request_id)
        return answer

    async def run(
        self, method: str, codec: Codec[RequestT, AnswerT], request: RequestT, call: CallContext
    ) -> AnswerT | Status:
        """Return the answer to a request of `call`, or the status of the error."""
        try:
            with self._calls:
                inference = self._inference(method, codec, request, call)
                try:
                    with inference:
                        inference.settle(await inference.submit())
                finally:
                    inference.count()
                assert inference.answer is not None
                return inference.answer
        except ShuttingDownError as error:
            return self._refusal(method, error, call)

    async def stream(
        self,
        method: str,
        codec: Codec[RequestT, AnswerT],
        requests: AsyncIterator[RequestT],
        context: ServicerContext[Any, MessageT],
        message: Callable[[RequestT, AnswerT | Status], MessageT],
        *,
        in_order: bool,
    ) -> None:
        """Answer the requests of a stream, each as soon as its answer is there or, `in_order`, in their order.

        A request that fails is answered by its error, and the stream goes on. A bounded number of requests is in flight
        at a time, answers that the client has yet to take included; further ones wait in the connection, where flow
        control holds the client back. After the client's last request every answer still comes. When the server drains,
        requests already read are answered, then the stream ends with UNAVAILABLE. A message that can't be read ends it
        with INVALID_ARGUMENT, once those before are answered: which one an error answers, nobody could tell.

        `message` returns what is written as the answer to a request.
        """
        call = self._call_of(context)

        def begin(request: RequestT) -> Inference[RequestT, AnswerT]:
            traced = call if self._tracer is None else self._traced(method, call, context, self._tracer)
            return self._inference(method, codec, request, traced)

        try:
            with self._calls, self._limits:
                stream = Stream(
                    begin,
                    message,
                    StreamPace(self._settings),
                    in_order=in_order,
                )
                self._streams.add(stream)
                try:
                    if await stream.run(requests, context.write):
                        return_request_id(context, call.request_id)
                        return
                finally:
                    self._streams.discard(stream)
                raise self._calls.refusal
        except ShuttingDownError as error:
            status = self._refusal(method, error, call)
        except OverloadedError as error:
            status = status_from_error(error, call.request_id)
            self._metrics.count_request(method, "", status.code.name, 0.0)
        except DecodeError as error:
            status = self._unreadable(method, error, call)
        except Exception as error:  # noqa: BLE001 the boundary: an unexpected error is logged and answered as INTERNAL
            status = status_from_error(error, call.request_id)
        await abort(context, status, call.request_id)

    def _call_of(self, context: ServicerContext[Any, Any]) -> CallContext:
        """Return what is known of a call; one whose requests may be traced has an id."""
        call = context_of_rpc(context, self._clock, has_certificates=self._has_certificates)
        return call if self._tracer is None or call.request_id else call._replace(request_id=made_id())

    def _inference(
        self, method: str, codec: Codec[RequestT, AnswerT], request: RequestT, call: CallContext
    ) -> Inference[RequestT, AnswerT]:
        return Inference(method, codec, request, call, self._metrics, self._clock, self._limits, self._shadows)

    def _traced(
        self, method: str, call: CallContext, context: ServicerContext[Any, Any], tracer: Tracer
    ) -> CallContext:
        """Return `call` as that of one request, whose trace begins now."""
        metadata, client = context.invocation_metadata() or (), call.caller.client
        trace = tracer.begin_rpc(self._service, method, metadata, client=client, request_id=call.request_id)
        return call._replace(trace=trace)

    def _unreadable(self, method: str, error: DecodeError, call: CallContext) -> Status:
        status = status_from_error(unreadable(error), call.request_id)
        self._metrics.count_request(method, "", status.code.name, 0.0)
        return status

    def _refusal(self, method: str, error: ShuttingDownError, call: CallContext) -> Status:
        self._metrics.count_request(method, "", StatusCode.UNAVAILABLE.name, 0.0)
        if call.trace is not None:
            call.trace.end(StatusCode.UNAVAILABLE, "", None)
        return status_from_error(error, call.request_id)
