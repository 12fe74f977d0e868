"""All kinds of calls at once against real server processes: whatever batches form, each answer is its own image's."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.fakes.colours import encoded, expected_logits, noise
from tests.serve.processes import FAST, own_channel, server_process
from tests.serve.services.open_inference_requests import infer_request, logits_of

CALLERS = 24
CALLS = 40
PICTURES = noise(64)
LOGITS = expected_logits(PICTURES)
# No two pictures can be taken for each other.
ATOL = 1e-5
assert np.unique(LOGITS.round(4), axis=0).shape == LOGITS.shape
FILES = [encoded(picture) for picture in PICTURES]


class Caller:
    """Makes calls of random kinds over a connection of its own, and checks what comes back."""

    def __init__(self, seed: int, channel: grpc.aio.Channel) -> None:
        self.random = random.Random(seed)
        self.classifier = ClassifierStub(channel)
        self.inference = GRPCInferenceServiceStub(channel)
        self.checked_rows = 0

    async def run(self) -> None:
        kinds = (self.unary, self.unary, self.cancelled, self.tensor, self.stream, self.tensor_stream)
        for _ in range(CALLS):
            await self.random.choice(kinds)()

    async def unary(self) -> None:
        rows = self.rows()
        self.check(rows, await self.classifier.Classify(self.request(rows)))

    async def cancelled(self) -> None:
        """Whatever of it is in a batch already must not end up in another's answer."""
        call = self.classifier.Classify(self.request(self.rows()))
        for _ in range(self.random.randrange(30)):
            await asyncio.sleep(0)
        call.cancel()

    async def tensor(self) -> None:
        rows = self.rows()
        answer = await self.inference.ModelInfer(infer_request(PICTURES[rows]))
        self.check_logits(rows, logits_of(answer))

    async def stream(self) -> None:
        sent = {str(number): self.rows() for number in range(self.random.randint(1, 8))}
        stream = self.classifier.ClassifyStream()
        for number, rows in sent.items():
            await stream.write(self.request(rows, number))
        await stream.done_writing()
        async for answer in stream:
            self.check(sent.pop(answer.id), answer)
        assert not sent

    async def tensor_stream(self) -> None:
        sent = [self.rows() for _ in range(self.random.randint(1, 8))]
        stream = self.inference.ModelStreamInfer()
        for rows in sent:
            await stream.write(infer_request(PICTURES[rows]))
        await stream.done_writing()
        for rows in sent:
            answer = await stream.read()
            assert answer.error_message == ""
            self.check_logits(rows, logits_of(answer.infer_response))
        assert await stream.read() == grpc.aio.EOF

    def rows(self) -> list[int]:
        return self.random.sample(range(len(PICTURES)), self.random.choice((1, 1, 1, 2, 3, 7, 20)))

    def request(self, rows: Sequence[int], id: str = "") -> ClassifyRequest:
        def image(row: int) -> Image:
            return self.random.choice((Image(raw=PICTURES[row].tobytes()), Image(encoded=FILES[row])))

        return ClassifyRequest(images=map(image, rows), id=id, top_k=1, return_logits=True)

    def check(self, rows: Sequence[int], answer: ClassifyResponse) -> None:
        self.check_logits(rows, np.array([np.frombuffer(result.logits, "<f4") for result in answer.results]))
        top = [result.predictions[0].index for result in answer.results]
        assert top == LOGITS[rows].argmax(1).tolist()

    def check_logits(self, rows: Sequence[int], logits: NDArray[np.float32]) -> None:
        np.testing.assert_allclose(logits, LOGITS[rows], atol=ATOL)
        self.checked_rows += len(rows)


@pytest.mark.parametrize(
    "flags",
    [("--max-batch", 1), ("--max-batch", 8), ("--max-batch", 8, "--max-delay-ms", 1), ("--workers", 2)],
    ids=lambda flags: " ".join(map(str, flags)),
)
async def test_each_answer_is_that_of_its_own_image(package: Path, flags: tuple[object, ...]) -> None:
    with server_process(package, *FAST, *flags, "--max-queue-rows", 5000) as server:
        async with AsyncExitStack() as stack, asyncio.timeout(60):
            callers = [Caller(seed, await stack.enter_async_context(own_channel(server))) for seed in range(CALLERS)]
            await asyncio.gather(*(caller.run() for caller in callers))
    assert sum(caller.checked_rows for caller in callers) > CALLERS * CALLS
