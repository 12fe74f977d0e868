"""The inference RPCs of one service, whatever their protocol: deadlines, refusals, streams, and the end of a drain."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from grpc import StatusCode
from grpc.aio import ServicerContext

from fuseline.serve.errors import OverloadedError, ShuttingDownError
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.routing.shadows import Shadows
from fuseline.serve.services.call_context import CallContext, context_of_rpc
from fuseline.serve.services.call_limits import CallLimits
from fuseline.serve.services.calls import Calls, abort
from fuseline.serve.services.inference import AnswerT, Codec, Inference, RequestT
from fuseline.serve.services.statuses import Status, status_from_error
from fuseline.serve.services.stream import MessageT, Stream
from fuseline.serve.services.stream_pace import StreamPace
from fuseline.serve.settings import Settings


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
    ) -> None:
        """Begin without calls. `clock` is the batchers' own, on which deadlines are.

        `limits` counts the calls of other services too; None: those of this one alone. `shadows` sample the requests.
        """
        self._metrics = metrics
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
        self, method: str, codec: Codec[RequestT, AnswerT], request: RequestT, context: ServicerContext[Any, Any]
    ) -> AnswerT:
        """Answer the request of a unary call, or end the call with the status of the error."""
        answer = await self.run(method, codec, request, self._context(context))
        if isinstance(answer, Status):
            await abort(context, answer)
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
            return self._refusal(method, error)

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
        requests already read are answered, then the stream ends with UNAVAILABLE.

        `message` returns what is written as the answer to a request.
        """
        try:
            with self._calls, self._limits:
                call = self._context(context)
                stream = Stream(
                    lambda request: self._inference(method, codec, request, call),
                    message,
                    StreamPace(self._settings),
                    in_order=in_order,
                )
                self._streams.add(stream)
                try:
                    if await stream.run(requests, context.write):
                        return
                finally:
                    self._streams.discard(stream)
                raise self._calls.refusal
        except ShuttingDownError as error:
            status = self._refusal(method, error)
        except OverloadedError as error:
            status = status_from_error(error)
            self._metrics.count_request(method, "", status.code.name, 0.0)
        except Exception as error:  # noqa: BLE001 the boundary: an unexpected error is logged and answered as INTERNAL
            status = status_from_error(error)
        await abort(context, status)

    def _context(self, context: ServicerContext[Any, Any]) -> CallContext:
        return context_of_rpc(context, self._clock, has_certificates=self._settings.tls_client_ca is not None)

    def _inference(
        self, method: str, codec: Codec[RequestT, AnswerT], request: RequestT, call: CallContext
    ) -> Inference[RequestT, AnswerT]:
        return Inference(method, codec, request, call, self._metrics, self._clock, self._limits, self._shadows)

    def _refusal(self, method: str, error: ShuttingDownError) -> Status:
        self._metrics.count_request(method, "", StatusCode.UNAVAILABLE.name, 0.0)
        return status_from_error(error)
