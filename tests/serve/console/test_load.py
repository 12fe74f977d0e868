"""The load that a server puts on itself."""

import asyncio
import math
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from pydantic import ValidationError

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse
from fuseline.serve.console.load import MAX_RATE, MAX_SECONDS, METHOD, LoadGenerator, LoadRequest
from fuseline.serve.console.reference_images import ReferenceImages
from fuseline.serve.errors import OverloadedError
from fuseline.serve.services.call_context import CallContext
from fuseline.serve.services.statuses import Status
from tests.fakes.virtual_time import VirtualLoop, run_in_virtual_time

PIXELS = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
IMAGES = ReferenceImages(PIXELS, (1, 0), [[], []])


class Service:
    """Answers class 1 for each image after `seconds`, or refuses every `refuses`th request."""

    def __init__(self, seconds: float, refuses: int = 0, code: StatusCode = StatusCode.RESOURCE_EXHAUSTED) -> None:
        self.seconds = seconds
        self.refuses = refuses
        self.code = code
        self.came: list[tuple[float, str, ClassifyRequest, CallContext]] = []
        self.cancelled = 0

    async def classify(self, method: str, request: ClassifyRequest, call: CallContext) -> ClassifyResponse | Status:
        self.came.append((asyncio.get_running_loop().time(), method, request, call))
        if self.refuses and len(self.came) % self.refuses == 0:
            return Status(self.code, "no room", "OverloadedError")
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        answer = ClassifyResponse()
        answer.results.add().predictions.add(index=1)
        return answer


def generator_of(loop: VirtualLoop) -> LoadGenerator:
    """A generator whose requests come evenly."""
    return LoadGenerator(loop.time, lambda rate: 1 / rate)


def asked(**changes: Any) -> LoadRequest:
    return LoadRequest(**({"model": "m", "version": "2", "rate": 100, "seconds": 2} | changes))


def test_requests_come_at_the_rate_whatever_the_answers_take_and_answers_are_held_against_pytorchs() -> None:
    async def main(loop: VirtualLoop) -> None:
        service = Service(seconds=3.0)
        result = await generator_of(loop).run(asked(), IMAGES, service.classify)
        times = [time for time, *_ in service.came]
        assert times == pytest.approx([number / 100 for number in range(200)], abs=1e-6)
        assert result.as_json() == {
            "sent": 200,
            "answered": 200,
            "wrong": 100,
            "by_code": {"OK": 200},
            "p50_ms": 3000.0,
            "p99_ms": 3000.0,
        }
        _, method, first, call = service.came[0]
        assert (method, first.model, first.model_version) == (METHOD, "m", "2")
        assert first.images[0].raw == PIXELS[0].tobytes()
        assert service.came[1][2].images[0].raw == PIXELS[1].tobytes()
        assert call.caller.client == "console load"

    run_in_virtual_time(main)


def test_requests_come_at_random_and_on_average_at_the_rate() -> None:
    async def main(loop: VirtualLoop) -> None:
        service = Service(seconds=0.0)
        await LoadGenerator(loop.time, Random(1).expovariate).run(asked(rate=1000, seconds=5), IMAGES, service.classify)
        times = [time for time, *_ in service.came]
        # The number is Poisson's: 5000, with a standard deviation of 71. So is the share of gaps above the average one.
        assert abs(len(times) - 5000) < 5 * 71
        longer = sum(after - before > 0.001 for before, after in pairwise(times)) / len(times)
        assert abs(longer - math.exp(-1)) < 0.04

    run_in_virtual_time(main)


def test_refusals_are_counted_by_their_code() -> None:
    async def main(loop: VirtualLoop) -> None:
        result = await generator_of(loop).run(asked(), IMAGES, Service(0.001, refuses=4).classify)
        assert result.by_code == {"OK": 150, "RESOURCE_EXHAUSTED": 50}
        assert result.as_json()["answered"] == 150

    run_in_virtual_time(main)


def test_a_load_ends_with_the_server() -> None:
    async def main(loop: VirtualLoop) -> None:
        service = Service(0.0, refuses=30, code=StatusCode.UNAVAILABLE)
        result = await generator_of(loop).run(asked(), IMAGES, service.classify)
        assert result.by_code == {"OK": 29, "UNAVAILABLE": 1}
        assert loop.time() < 0.5

    run_in_virtual_time(main)


def test_a_load_without_an_answer_has_no_latency() -> None:
    async def main(loop: VirtualLoop) -> None:
        result = await generator_of(loop).run(asked(), IMAGES, Service(0.0, refuses=1).classify)
        assert (result.as_json()["p50_ms"], result.as_json()["p99_ms"]) == (None, None)

    run_in_virtual_time(main)


def test_one_load_runs_at_a_time_and_one_that_is_cancelled_cancels_its_requests() -> None:
    async def main(loop: VirtualLoop) -> None:
        service, generator = Service(seconds=60.0), generator_of(loop)
        running = asyncio.create_task(generator.run(asked(), IMAGES, service.classify))
        await asyncio.sleep(1.005)
        with pytest.raises(OverloadedError, match="a load runs already"):
            await generator.run(asked(), IMAGES, service.classify)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.sleep(0.1)
        assert service.cancelled == len(service.came) == 101
        assert (await generator.run(asked(), IMAGES, Service(0.0).classify)).sent == 200

    run_in_virtual_time(main)


@pytest.mark.parametrize(
    "changes",
    [
        {"rate": 0},
        {"rate": -1},
        {"rate": MAX_RATE + 1},
        {"rate": float("nan")},
        {"rate": float("inf")},
        {"seconds": 0},
        {"seconds": MAX_SECONDS + 0.1},
        {"images": 3},
        {"rate": None},
    ],
)
def test_no_load_is_larger_or_longer_than_it_may_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        asked(**changes)
