"""Swaps under constant load over real connections: not one request fails or is answered by the wrong version."""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2 import RepositoryModelLoadRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.server import Server
from tests.fakes.colours import encoded, noise
from tests.serve.conftest import settings
from tests.serve.model_control.repositories import content_of, put, take_away
from tests.serve.processes import FAST, server_process
from tests.serve.services.classify_requests import raw_request
from tests.serve.services.open_inference_requests import infer_request, logits_of

PIXELS = noise(3)


@dataclass
class Load:
    """Calls that never cease, and what their answers may be."""

    least: int
    """Version that every request from now on is at least answered by."""
    most: int
    """Version that any request is at most answered by."""
    answers: int = 0
    by_version: dict[int, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    """Times of the raw calls since it was emptied."""
    ended: bool = False
    progress: asyncio.Event = field(default_factory=asyncio.Event)

    def count(self, least: int, version: str, content: int) -> None:
        """Count an answer to a request that was sent when `least` was served."""
        assert content == int(version), "the version that a response tells is the one that computed it"
        assert least <= int(version) <= self.most
        self.answers += 1
        self.by_version[content] = self.by_version.get(content, 0) + 1
        self.progress.set()

    async def until_answers(self, more: int) -> None:
        """Return when that many more answers have come."""
        wanted = self.answers + more
        while self.answers < wanted:
            self.progress.clear()
            await self.progress.wait()


def logits_in(response: ClassifyResponse) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.stack([np.frombuffer(result.logits, "<f4") for result in response.results])


async def classify_raw(load: Load, channel: grpc.aio.Channel) -> None:
    stub = ClassifierStub(channel)
    while not load.ended:
        least, began = load.least, time.monotonic()
        response = await stub.Classify(raw_request(PIXELS, return_logits=True))
        load.seconds.append(time.monotonic() - began)
        load.count(least, response.model_version, content_of(logits_in(response), PIXELS))


async def classify_pictures(load: Load, channel: grpc.aio.Channel) -> None:
    stub = ClassifierStub(channel)
    images = [Image(encoded=encoded(pixels)) for pixels in PIXELS]
    while not load.ended:
        least = load.least
        response = await stub.Classify(ClassifyRequest(images=images, return_logits=True))
        load.count(least, response.model_version, content_of(logits_in(response), PIXELS))


async def classify_stream(load: Load, channel: grpc.aio.Channel) -> None:
    images = [Image(encoded=encoded(pixels)) for pixels in PIXELS]
    sent: dict[str, int] = {}
    room = asyncio.Semaphore(4)

    async def requests() -> AsyncIterator[ClassifyRequest]:
        for number in itertools.count():
            await room.acquire()
            if load.ended:
                return
            sent[str(number)] = load.least
            yield ClassifyRequest(images=images, return_logits=True, id=str(number))

    async for response in ClassifierStub(channel).ClassifyStream(requests()):
        assert not response.HasField("error"), response.error.message
        load.count(sent.pop(response.id), response.model_version, content_of(logits_in(response), PIXELS))
        room.release()


async def infer(load: Load, channel: grpc.aio.Channel) -> None:
    stub = GRPCInferenceServiceStub(channel)
    while not load.ended:
        least = load.least
        response = await stub.ModelInfer(infer_request(PIXELS, model_name="cats"))
        load.count(least, response.model_version, content_of(logits_of(response), PIXELS))


CALLERS: tuple[Callable[[Load, grpc.aio.Channel], Coroutine[Any, Any, None]], ...] = (
    classify_raw,
    classify_pictures,
    classify_stream,
    infer,
)


@asynccontextmanager
async def under_load(address: str, load: Load) -> AsyncIterator[grpc.aio.Channel]:
    """Call the server at `address` in every way until the block ends."""
    async with grpc.aio.insecure_channel(address) as channel, asyncio.TaskGroup() as callers:
        for caller in CALLERS:
            callers.create_task(caller(load, channel))
        yield channel
        load.ended = True


@pytest.mark.parametrize("lanes", [1, 2])
async def test_not_one_request_fails_or_is_answered_by_the_wrong_version(tmp_path: Path, lanes: int) -> None:
    root = tmp_path / "models"
    put(root, "cats", 1)
    its_settings = settings(
        model_repository=(root,), model_control_mode="explicit", load_model=("cats",), max_batch=4, lanes=lanes
    )
    server = Server.for_packages([], its_settings)
    await server.start()
    load = Load(1, 1)
    try:
        async with under_load(f"127.0.0.1:{server.port}", load) as channel:
            stub = GRPCInferenceServiceStub(channel)
            await load.until_answers(20)
            for version in (2, 3, 4):
                load.most = version
                put(root, "cats", version)
                await stub.RepositoryModelLoad(RepositoryModelLoadRequest(model_name="cats"))
                load.least = version
                await load.until_answers(20)
            # Back again: the one that was removed falls back.
            load.least = 3
            take_away(root / "cats/4")
            await stub.RepositoryModelLoad(RepositoryModelLoadRequest(model_name="cats"))
            load.most = 4
            await load.until_answers(40)
    finally:
        await server.drain()
    assert load.by_version.keys() == {1, 2, 3, 4}
    assert set(server.answers().split(", ")) == {f"{load.answers} OK"}


async def test_a_broken_package_under_load_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "models"
    put(root, "cats", 1)
    server = Server.for_packages(
        [], settings(model_repository=(root,), model_control_mode="explicit", load_model=("*",), max_batch=4)
    )
    await server.start()
    load = Load(1, 1)
    try:
        async with under_load(f"127.0.0.1:{server.port}", load) as channel:
            broken = put(root, "cats", 2)
            (broken / "model.onnx").write_bytes(b"no graph")
            with pytest.raises(grpc.RpcError, match="version 1 is served still"):
                await GRPCInferenceServiceStub(channel).RepositoryModelLoad(
                    RepositoryModelLoadRequest(model_name="cats")
                )
            await load.until_answers(20)
    finally:
        await server.drain()
    assert load.by_version.keys() == {1}


@pytest.mark.slow
async def test_a_hundred_swaps_fail_nothing_and_leave_latency_memory_and_descriptors_as_they_were(
    tmp_path: Path,
) -> None:
    root = tmp_path / "models"
    put(root, "cats", 1)
    # Making them takes CPU time in this process, which tells the time of the calls.
    for version in range(2, 102):
        put(tmp_path / "made", "cats", version)
    flags = ("--model-repository", root, "--model-control-mode", "explicit", "--load-model", "cats")
    with server_process(*flags, *FAST, "--max-batch", 4) as server:
        load = Load(1, 1)
        async with under_load(server.address, load) as channel:
            stub = GRPCInferenceServiceStub(channel)

            async def swap_to(version: int) -> None:
                load.most = version
                (tmp_path / f"made/cats/{version}").rename(root / f"cats/{version}")
                await stub.RepositoryModelLoad(RepositoryModelLoadRequest(model_name="cats"))
                load.least = version
                await load.until_answers(100)
                (root / f"cats/{version - 1}").rename(tmp_path / f"made/cats/{version - 1}")

            await load.until_answers(2000)
            before_s, load.seconds = p99(load.seconds), []
            for version in range(2, 22):
                await swap_to(version)
            rss, files = resident_bytes(server.process.pid), open_files(server.process.pid)
            for version in range(22, 102):
                await swap_to(version)
            during_s = p99(load.seconds)
            await load.until_answers(100)
            grown = resident_bytes(server.process.pid) - rss
            print(f"p99 {1000 * during_s:.1f} ms, before {1000 * before_s:.1f}; memory grew by {grown / 2**20:.1f} MiB")
            assert grown <= 0.05 * rss
            assert abs(open_files(server.process.pid) - files) <= 2
        # Of a model that takes a few ms, the rest of the machine makes more than a swap does.
        assert during_s <= max(2 * before_s, 0.025)
        assert load.answers > 2000


def p99(seconds: list[float]) -> float:
    return float(np.percentile(seconds, 99))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
