"""Counts the calls under way in a service, so that a drain refuses new ones and waits for the rest; ends calls."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

from grpc.aio import ServicerContext

from fuseline.serve.errors import ShuttingDownError
from fuseline.serve.services.request_ids import REQUEST_ID_KEY, request_id_of
from fuseline.serve.services.statuses import Status, status_from_error

_Answer = TypeVar("_Answer")


class Calls:
    """Counts calls, each of which runs in `with calls:`. Everything happens on one event loop."""

    def __init__(self) -> None:
        self.refused = False
        """Whether `refuse` was called."""
        self._under_way = 0
        self._idle = asyncio.Event()

    @property
    def refusal(self) -> ShuttingDownError:
        """Error for a call that comes after `refuse`."""
        return ShuttingDownError(
            "the server is shutting down and takes nothing new; send this to another server, or again later"
        )

    def __enter__(self) -> None:
        """Begin a call. Raises `ShuttingDownError` after `refuse`."""
        if self.refused:
            raise self.refusal
        self._under_way += 1

    def __exit__(self, *_: object) -> None:
        self._under_way -= 1
        if self.refused and not self._under_way:
            self._idle.set()

    def refuse(self) -> None:
        """Refuse calls that begin from now on."""
        self.refused = True

    async def idle(self) -> None:
        """Return, after `refuse`, once every call that began has ended."""
        if self._under_way:
            await self._idle.wait()


async def answer_or_abort(context: ServicerContext[Any, Any], answer: Callable[[], _Answer]) -> _Answer:
    """Return `answer()`, or end the call with the status of the error that it raises; its id goes with either."""
    request_id = request_id_of(context.invocation_metadata() or ())
    try:
        answered = answer()
    except Exception as error:  # noqa: BLE001 the boundary: an unexpected error is logged and answered as INTERNAL
        await abort(context, status_from_error(error, request_id), request_id)
    return_request_id(context, request_id)
    return answered


async def await_or_abort(context: ServicerContext[Any, Any], answer: Awaitable[_Answer]) -> _Answer:
    """Return what `answer` comes to, or end the call with the status of the error that it raises.

    The call's id goes with either.
    """
    request_id = request_id_of(context.invocation_metadata() or ())
    try:
        answered = await answer
    except Exception as error:  # noqa: BLE001 the boundary: an unexpected error is logged and answered as INTERNAL
        await abort(context, status_from_error(error, request_id), request_id)
    return_request_id(context, request_id)
    return answered


def return_request_id(context: ServicerContext[Any, Any], request_id: str) -> None:
    """Send the call's id with its end, if it has one."""
    if request_id:
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))


async def abort_by(context: ServicerContext[Any, Any], error: BaseException) -> NoReturn:
    """End the call with the status of `error`; its id goes with it."""
    request_id = request_id_of(context.invocation_metadata() or ())
    await abort(context, status_from_error(error, request_id), request_id)


async def abort(context: ServicerContext[Any, Any], status: Status, request_id: str = "") -> NoReturn:
    """End the call, which has this id or, if it is empty, none, with `status`."""
    metadata = status.trailing_metadata
    if request_id:
        metadata = (*metadata, (REQUEST_ID_KEY, request_id))
    await context.abort(status.code, status.message, metadata)
