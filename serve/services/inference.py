"""The life of one inference request, the same for every RPC: checked, decoded, admitted, answered, counted.

What differs between RPCs is in their `Codec`.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, TypeVar

from grpc import StatusCode

from fuseline.serve.batching.admission import Reservation
from fuseline.serve.batching.batcher import BatchedRows, Row
from fuseline.serve.errors import ShuttingDownError
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import Model
from fuseline.serve.routing.shadows import Decode as ShadowDecode
from fuseline.serve.routing.shadows import Sample, Shadows
from fuseline.serve.services.call_context import CallContext
from fuseline.serve.services.call_limits import CallLimits
from fuseline.serve.services.priority import priority_from_text
from fuseline.serve.services.statuses import Status, status_from_error

_log = logging.getLogger(__name__)

RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT")

Decode = Callable[[CallContext], Coroutine[Any, Any, tuple[list[Row], Reservation]]]
"""Reserves room in the model's batcher for a request with encoded images, then decodes them; the argument has the
request's deadline and caller.

Returns the row of each image, in order, and the reservation, which is for `RowBatcher.submit`.

Raises:
    ImageError: bytes that are no image, or one beyond the bounds.
    OverloadedError, DeadlineError, ShuttingDownError: the batcher doesn't admit the request.
"""


class Codec(ABC, Generic[RequestT, AnswerT]):
    """How requests are validated and answers encoded. Every method is called on the event loop and returns at once."""

    parse: Callable[[bytes], RequestT]
    """Returns the request that the bytes of a message hold. Raises `DecodeError`."""

    @abstractmethod
    def timeout_s(self, request: RequestT) -> float | None:
        """Return the seconds from arrival after which the answer to `request` is of no use; None: it has no timeout."""

    @abstractmethod
    def model_name(self, request: RequestT) -> str:
        """Return the name of the model, or the alias, that `request` asks for; empty: the only model."""

    @abstractmethod
    def priority(self, request: RequestT) -> int:
        """Return the level that a sound `request` asks for; 0: it leaves that to the call. Raises `RequestError`."""

    @abstractmethod
    def find(self, request: RequestT) -> Model:
        """Return the model that `request` asks for. Raises `UnknownModelError`."""

    @abstractmethod
    def rows(self, request: RequestT, model: Model) -> list[Row] | Decode:
        """Check all of `request`, and return its rows or the call that decodes them. Raises `RequestError`."""

    def outputs(self, request: RequestT, model: Model) -> Any:  # noqa: ARG002
        """Check how `request`, whose `rows` are sound, wants its answer, and return what `answer` needs for that.

        Raises `RequestError`.
        """
        return None

    @abstractmethod
    def answer(
        self, request: RequestT, model: Model, batched: BatchedRows, preprocess_s: float, outputs: Any
    ) -> AnswerT:
        """Return the answer to `request`, whose decoding took `preprocess_s`; `outputs` is what `outputs` returned.

        Raises `BackendError` if the logits are not finite.
        """


class Inference(Generic[RequestT, AnswerT]):
    """One request, which has one answer and is counted once.

    `with inference:` is the boundary around each of its steps: an error raised within becomes the answer, an unexpected
    one as INTERNAL. A request without an answer is counted as CANCELLED.
    """

    __slots__ = (
        "_batched",
        "_call",
        "_clock",
        "_code",
        "_codec",
        "_is_under_way",
        "_limits",
        "_method",
        "_metrics",
        "_outputs",
        "_preprocess_s",
        "_sample",
        "_shadows",
        "_started",
        "answer",
        "has_timeout",
        "model",
        "request",
    )

    def __init__(
        self,
        method: str,
        codec: Codec[RequestT, AnswerT],
        request: RequestT,
        call: CallContext,
        metrics: Metrics,
        clock: Callable[[], float],
        limits: CallLimits,
        shadows: Shadows | None = None,
    ) -> None:
        """Begin with a `request` that has just come.

        It is counted under `method`, and in `limits` until `count` or `abandon`; `call` is what is known of its call,
        whose deadline is on `clock`. `shadows` compute it too, where they sample it.
        """
        self._method = method
        self._codec = codec
        self._metrics = metrics
        self._clock = clock
        self._limits = limits
        self._is_under_way = False
        self._shadows = shadows
        self._sample: Sample | None = None
        self._started = clock()
        self._preprocess_s = 0.0
        self._outputs: Any = None
        self._batched: BatchedRows | None = None
        self._code = StatusCode.CANCELLED
        self.request = request
        self.model: Model | None = None
        """Model that the request is for; None until it is found."""
        self.answer: AnswerT | Status | None = None
        """Answer to the request; None until it is there."""
        timeout_s = codec.timeout_s(request)
        self.has_timeout = timeout_s is not None
        if timeout_s is not None:
            own = self._started + timeout_s
            call = call._replace(deadline=own if call.deadline is None else min(own, call.deadline))
        self._call = call

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self.fail(error)
        return True

    def submit(self) -> asyncio.Future[BatchedRows] | Coroutine[Any, Any, BatchedRows]:
        """Check the request and hand it to its model's batcher.

        For rows the result is the batcher's own future, which costs no task; for images to decode first, a coroutine.
        Raises what `CallLimits.begin`, `Codec.find`, `Codec.rows`, `Codec.outputs` and `RowBatcher.submit` raise.
        """
        if not self._is_under_way:
            # A request that is handed to a model's successor has begun already.
            self._limits.begin(self._call.caller.client)
            self._is_under_way = True
        self.model = model = self._codec.find(self.request)
        rows = self._codec.rows(self.request, model)
        self._outputs = self._codec.outputs(self.request, model)
        if level := self._codec.priority(self.request) or (
            priority_from_text(self._call.priority) if self._call.priority else 0
        ):
            self._call = self._call._replace(caller=self._call.caller._replace(priority=level))
        if self._shadows is not None:
            self._sample = self._sampled(self._shadows, model)
        if isinstance(rows, list):
            if self._sample is not None:
                self._sample.take(rows)
            call = self._call
            pending = model.batcher.submit(rows, deadline=call.deadline, caller=call.caller, trace=call.trace)
            if call.trace is not None:
                call.trace.submitted(pending)
            return pending
        return self._decoded(model, rows)

    def _sampled(self, shadows: Shadows, model: Model) -> Sample | None:
        """Return the sample if a shadow computes the request too."""
        sample = shadows.sample(self._codec.model_name(self.request) or model.name, model)
        if sample is None:
            return None

        def rows_of(shadow: Model) -> list[Row] | ShadowDecode:
            made = self._codec.rows(self.request, shadow)
            return made if isinstance(made, list) else lambda caller: made(CallContext(caller=caller))

        return sample if shadows.prepare(sample, rows_of) else None

    async def _decoded(self, model: Model, decode: Decode) -> BatchedRows:
        begun = time.monotonic()
        try:
            rows, reservation = await decode(self._call)
        except ShuttingDownError:
            # Between the turn of the event loop in which a stream found the model and this one it may have been
            # retired. Its successor then takes the request, if it has one.
            if self._codec.find(self.request) is model:
                raise
            return await self.submit()
        self._preprocess_s = time.monotonic() - begun
        if self._sample is not None:
            self._sample.take(rows)
        exemplar = self._call.exemplar if self._call.request_id else None
        self._metrics.count_preprocess(model.name, model.version, self._preprocess_s, exemplar)
        call = self._call
        pending = model.batcher.submit(
            rows, deadline=call.deadline, reservation=reservation, caller=call.caller, trace=call.trace
        )
        if call.trace is not None:
            call.trace.decoded(self._preprocess_s)
            call.trace.submitted(pending)
        return await pending

    def settle(self, batched: BatchedRows) -> None:
        """Make the answer from the batcher's. Raises what `Codec.answer` raises."""
        assert self.model is not None
        self.answer = self._codec.answer(self.request, self.model, batched, self._preprocess_s, self._outputs)
        self._batched = batched
        self._code = StatusCode.OK
        if self._sample is not None:
            self._sample.answered(batched)

    def fail(self, error: BaseException) -> None:
        """Make the answer from `error`."""
        self.answer = status = status_from_error(error, self._call.request_id)
        self._code = status.code

    def count(self) -> None:
        """Count the request under its answer's status, with the time from its arrival until now."""
        if self._is_under_way:
            self._limits.end(self._call.caller.client)
            self._is_under_way = False
        name = "" if self.model is None else self.model.name
        call, code, seconds = self._call, self._code.name, self._clock() - self._started
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug(
                "%s of %s: %s in %.3f ms",
                self._method,
                name or "no model",
                code,
                1000 * seconds,
                extra={
                    "request_id": call.request_id,
                    "fields": {"method": self._method, "model": name, "code": code, "ms": round(1000 * seconds, 3)},
                },
            )
        version = "" if self.model is None else self.model.version
        self._metrics.count_request(
            self._method, name, code, seconds, self._batched, version, call.exemplar if call.request_id else None
        )
        if (feed := self._metrics.feed).is_watched:
            timeout_s = None if call.deadline is None else call.deadline - self._started
            error = (self.answer.error_name, self.answer.message) if isinstance(self.answer, Status) else None
            feed.note_request(self._method, name, version, code, seconds, self._batched, timeout_s, error)
        if call.trace is not None:
            call.trace.end(self._code, name, self._batched)

    def abandon(self) -> None:
        """Count the request as CANCELLED: nobody takes its answer."""
        self._code = StatusCode.CANCELLED
        self.count()
