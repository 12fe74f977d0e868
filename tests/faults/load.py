"""A load on a server that accounts for each of its requests: answered, refused under a status, or answered wrongly."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from tests.fakes.colours import LABELS, plain
from tests.serve.processes import ServerProcess, own_channel
from tests.serve.services.classify_requests import raw_request


@dataclass
class Outcomes:
    """What became of the requests."""

    sent: int = 0
    answered: int = 0
    wrong: int = 0
    """Answers of another colour than was asked about."""
    refused: Counter[str] = field(default_factory=Counter)
    """Requests that ended otherwise, by status."""
    latencies_s: list[float] = field(default_factory=list)
    """Seconds to each answer."""
    answered_at: list[float] = field(default_factory=list)
    """When each answer came, by `time.monotonic`."""

    def check_nothing_lost(self) -> None:
        """Fail unless every request ended, and every answer was right."""
        assert self.sent == self.answered + self.refused.total(), self
        assert self.wrong == 0

    def __str__(self) -> str:
        return f"{self.sent} sent, {self.answered} answered, {dict(self.refused)}"


@dataclass
class Load:
    """Callers that send one request after the other until told to stop."""

    outcomes: Outcomes = field(default_factory=Outcomes)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, condition: Callable[[Outcomes], bool], timeout_s: float = 60) -> None:
        """Return once `condition` holds of the outcomes so far."""
        async with asyncio.timeout(timeout_s):
            while not condition(self.outcomes):  # noqa: ASYNC110 the callers tell no one
                await asyncio.sleep(0.01)

    async def until_answered(self, more: int, timeout_s: float = 60) -> None:
        """Return once so many more requests were answered."""
        wanted = self.outcomes.answered + more
        await self.until(lambda its: its.answered >= wanted, timeout_s)


REQUESTS: Sequence[ClassifyRequest] = tuple(raw_request(plain(label)[None], top_k=1) for label in LABELS)
"""One request for each label, in their order."""


def is_right(answer: ClassifyResponse, label: str) -> bool:
    """Whether each image was told to be of that label."""
    return all(result.predictions[0].label == label for result in answer.results)


@asynccontextmanager
async def load_on(
    server: ServerProcess,
    *,
    callers: int = 16,
    connections: int = 4,
    timeout_s: float = 30,
    stop_on: Callable[[str], bool] = lambda _: False,
    pause_s: float = 0.0,
) -> AsyncIterator[Load]:
    """Load the server while the context lasts; at its end no request is under way any more.

    A caller that meets a status of which `stop_on` says so sends nothing more. One that is refused waits a moment.
    """
    load = Load()
    channels = [own_channel(server) for _ in range(connections)]

    async def call(number: int) -> None:
        stub, outcomes = ClassifierStub(channels[number % connections]), load.outcomes
        while not load.stopped.is_set():
            kind = outcomes.sent % len(REQUESTS)
            outcomes.sent += 1
            begun = time.monotonic()
            try:
                answer = await stub.Classify(REQUESTS[kind], timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                outcomes.refused[error.code().name] += 1
                if stop_on(error.code().name):
                    return
                await asyncio.sleep(0.01)
                continue
            now = time.monotonic()
            outcomes.answered += 1
            outcomes.wrong += not is_right(answer, LABELS[kind])
            outcomes.latencies_s.append(now - begun)
            outcomes.answered_at.append(now)
            if pause_s:
                await asyncio.sleep(pause_s)

    calls = [asyncio.create_task(call(number)) for number in range(callers)]
    try:
        yield load
    finally:
        load.stopped.set()
        await asyncio.gather(*calls)
        for channel in channels:
            await channel.close()
