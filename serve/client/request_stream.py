"""Requests to one server that travel as messages of one long-lived stream of gRPC, small ones several in a message.

A call of gRPC costs client and server more than the work on a small picture, and a message of a stream costs them
nearly as much. So requests of one kind that wait at the same moment are sent as one request of all their images. What
each gets is what a call of its own would have got: its own deadline, and its own error. For the errors of a message of
several can be that of one of them, they are then sent again, each in a message of its own.
"""

import asyncio
from functools import partial
from typing import Any

import grpc

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse
from fuseline.serve.client.answers import error_from_response
from fuseline.serve.client.calls import error_from_rpc
from fuseline.serve.client.open_stream import OpenStream, StreamEnd
from fuseline.serve.errors import DeadlineError, FuselineError, ShuttingDownError

LARGEST_BYTES = 256 * 1024
"""Largest request that goes by a stream, where it holds up those behind it; a larger one is a call of its own."""

_METHOD = "/fuseline.v1.Classifier/ClassifyStream"
_UNARY_METHOD = "/fuseline.v1.Classifier/Classify"


class RequestStream:
    """The stream to one server, renewed as it ends. It belongs to one event loop."""

    def __init__(self, address: str, channel: grpc.aio.Channel, metadata: Any) -> None:
        self._address = address
        self._open: Any = channel.stream_stream(_METHOD, response_deserializer=ClassifyResponse.FromString)
        self._call: Any = channel.unary_unary(
            _UNARY_METHOD, ClassifyRequest.SerializeToString, ClassifyResponse.FromString
        )
        self._metadata = metadata
        self._current: OpenStream | None = None
        self._streams: set[OpenStream] = set()

    async def classify(
        self, request: ClassifyRequest, left_s: float | None, timeout_s: float | None
    ) -> ClassifyResponse:
        """Return the response to one request within `left_s` of its `timeout_s` seconds; `id` and `timeout_ms` are set.

        A request that is cancelled before it was sent is not sent; the answer to a later one is dropped.

        Raises:
            FuselineError: what the server answered, or what the stream broke by; `is_untaken` where it wasn't sent.
            grpc.RpcError: the same of a call, by which a request is sent whose stream broke for a reason not known.
        """
        loop = asyncio.get_running_loop()
        deadline = None if left_s is None else loop.time() + left_s
        answer = await self._open_stream().answer(request, deadline)
        if isinstance(answer, StreamEnd) and answer.is_vague:
            # Whether the server drains, is gone or well, a call finds out; another stream might end as vaguely.
            left_s = None if deadline is None else deadline - loop.time()
            response: ClassifyResponse = await self._call(request, timeout=left_s, metadata=self._metadata)
            return response
        if isinstance(answer, ClassifyResponse):
            if answer.HasField("error"):
                raise error_from_response(answer)
            return answer
        if answer is None:
            error = DeadlineError(f"no answer from {self._address} within {timeout_s:g} s; allow more time")
            error.is_unanswered = True
            raise error
        raise self._broken(answer)

    async def close(self) -> None:
        """End the stream; requests under way end with `asyncio.CancelledError`."""
        streams = list(self._streams)
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*(stream.reader for stream in streams), return_exceptions=True)

    def _open_stream(self) -> OpenStream:
        if self._current is None or not self._current.is_open:
            self._current = stream = OpenStream(self._open(metadata=self._metadata))
            self._streams.add(stream)
            stream.reader.add_done_callback(partial(self._forget, stream))
        return self._current

    def _forget(self, stream: OpenStream, _: object) -> None:
        self._streams.discard(stream)

    def _broken(self, end: StreamEnd) -> FuselineError:
        """Return the error of a request whose stream ended before its answer came."""
        error: FuselineError
        if end.error is None:
            error = ShuttingDownError(f"{self._address} ended the stream before it took the request")
            error.is_untaken = error.may_pass = True
            return error
        error = error_from_rpc(end.error, self._address, None, None)
        error.__cause__ = end.error
        error.is_untaken = error.is_untaken or not end.was_sent
        return error
