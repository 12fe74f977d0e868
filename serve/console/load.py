"""A bounded load that the server puts on itself, so that one can see batches form."""

import asyncio
import random
import reprlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import numpy as np
from grpc import StatusCode
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse, Image
from fuseline.serve.batching.requests import Caller
from fuseline.serve.console.reference_images import ReferenceImages
from fuseline.serve.errors import OverloadedError, RequestError
from fuseline.serve.services.call_context import CallContext
from fuseline.serve.services.statuses import Status

METHOD = "console/load"
"""Method that metrics count the requests under."""

MAX_SECONDS = 5.0
MAX_RATE = 2000.0
"""Most requests in a second."""

_CALL = CallContext(caller=Caller("console load"))
"""The load is one client, which queues and limits treat as any other."""

_RESOLUTION_S = 1e-6
"""Seconds by which a request may be early: no timer is more precise."""

_MOST_BYTES = 4096

_MOST_AT_ONCE = 32
"""Requests that are sent in one turn of the event loop, so that others have theirs."""


class Classify(Protocol):
    """What classifies as `ClassifyService.classify` does."""

    def __call__(
        self, method: str, request: ClassifyRequest, call: CallContext
    ) -> Awaitable[ClassifyResponse | Status]:
        """See `ClassifyService.classify`."""
        ...


class LoadRequest(BaseModel):
    """What load is asked for."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    version: str = ""
    rate: Annotated[float, Field(gt=0, le=MAX_RATE)]
    """Requests in a second on average, of one image each."""
    seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = MAX_SECONDS


def load_request_from_json(body: bytes) -> LoadRequest:
    """Return the load that `body` asks for. Raises `RequestError`."""
    if len(body) > _MOST_BYTES:
        raise RequestError(f"{len(body)} bytes came; a load is asked for in at most {_MOST_BYTES}")
    try:
        return LoadRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = reprlib.repr(".".join(map(str, first["loc"]))) if first["loc"] else "the body"
        raise RequestError(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}") from error


@dataclass(slots=True)
class LoadResult:
    """What became of a load's requests."""

    sent: int = 0
    wrong: int = 0
    """Answers whose most probable class is another than PyTorch's."""
    by_code: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """From each request that was answered to its answer."""

    def as_json(self) -> dict[str, Any]:
        """Return it for people; latencies in ms, None where nothing was answered."""
        p50_ms = p99_ms = None
        if self.seconds:
            # Each is the time of an answer, that the share of them doesn't pass.
            quantiles = np.quantile(self.seconds, (0.5, 0.99), method="inverted_cdf")
            p50_ms, p99_ms = (round(1000 * float(seconds), 3) for seconds in quantiles)
        return {
            "sent": self.sent,
            "answered": len(self.seconds),
            "wrong": self.wrong,
            "by_code": dict(self.by_code),
            "p50_ms": p50_ms,
            "p99_ms": p99_ms,
        }


class LoadGenerator:
    """Sends requests for reference images at a given rate, whatever becomes of them, and checks the answers.

    They come at random, as those of many independent clients do: a Poisson process, as in MLPerf's server scenario
    (Reddi et al., MLPerf inference benchmark, ISCA 2020). One load runs at a time. Everything happens on one event
    loop.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        gap: Callable[[float], float] = random.expovariate,
    ) -> None:
        """`clock` tells monotonic seconds, `gap` the seconds between two requests at a rate."""
        self._clock = clock
        self._gap = gap
        self._is_running = False

    async def run(self, asked: LoadRequest, images: ReferenceImages, classify: Classify) -> LoadResult:
        """Send what was asked for, and return once all of it is answered. Cancelled, it cancels what is under way.

        It sends nothing more once a request was UNAVAILABLE: the server ends, or its backend has gone.

        Raises `OverloadedError` while another load runs.
        """
        if self._is_running:
            raise OverloadedError("a load runs already; wait for its end, which is at most a few seconds away", 1.0)
        self._is_running = True
        result, tasks = LoadResult(), set[asyncio.Task[None]]()
        try:
            due = self._clock()
            until = due + asked.seconds
            while (now := self._clock() + _RESOLUTION_S) < until and not result.by_code[StatusCode.UNAVAILABLE.name]:
                for _ in range(_MOST_AT_ONCE):
                    if due > now:
                        break
                    task = asyncio.create_task(self._send(asked, images, result.sent, classify, result))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                    result.sent += 1
                    due += self._gap(asked.rate)
                await asyncio.sleep(max(0.0, min(due, until) - self._clock()))
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            self._is_running = False
        return result

    async def _send(
        self, asked: LoadRequest, images: ReferenceImages, number: int, classify: Classify, result: LoadResult
    ) -> None:
        index = number % len(images.pixels)
        request = ClassifyRequest(
            model=asked.model, model_version=asked.version, images=[Image(raw=images.pixels[index].tobytes())]
        )
        began = self._clock()
        answer = await classify(METHOD, request, _CALL)
        if isinstance(answer, Status):
            result.by_code[answer.code.name] += 1
            return
        result.by_code["OK"] += 1
        result.seconds.append(self._clock() - began)
        result.wrong += answer.results[0].predictions[0].index != images.best[index]
