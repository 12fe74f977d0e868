"""Classify for models that take normalised floats: clients go on sending files and pixels, and get the same answers."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import current_thread
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse, GetModelRequest, Image
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.serve.client import Client
from fuseline.serve.server import Server
from fuseline.serve.services import image_rows
from tests.fakes.colours import encoded, expected_logits, noise, write_colours_package
from tests.serve.conftest import settings
from tests.serve.failures import refusal
from tests.serve.processes import FAST, ServerProcess, server_process
from tests.serve.services.classify_requests import logits_of, raw_request

FLOATS = ["fp32-nchw", "fp16-nchw"]
FORMATS = ["uint8-nhwc", *FLOATS]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in every format."""
    folder = tmp_path_factory.mktemp("packages")
    return {takes: write_colours_package(folder / takes, name=takes, takes=takes) for takes in FORMATS}


@asynccontextmanager
async def served(folders: list[Path], **changes: Any) -> AsyncIterator[ClassifierStub]:
    server = Server.for_packages(folders, settings(**changes))
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield ClassifierStub(channel)
    finally:
        await server.drain()


def mixed_images(seed: int) -> list[Image]:
    """Files and pixels in turn."""
    pictures = noise(5, seed)
    return [
        Image(raw=pictures[0].tobytes()),
        Image(encoded=encoded(pictures[1])),
        Image(encoded=encoded(pictures[2].repeat(5, 0).repeat(9, 1), "JPEG")),
        Image(raw=pictures[3].tobytes()),
        Image(encoded=encoded(pictures[4], "WEBP")),
    ]


async def test_files_and_pixels_get_the_answers_of_the_model_that_takes_pixels(packages: dict[str, Path]) -> None:
    requests = [
        ClassifyRequest(model=takes, images=mixed_images(seed), return_logits=True, top_k=4)
        for seed in range(3)
        for takes in FORMATS
    ]
    async with served(list(packages.values())) as stub:
        answers = await asyncio.gather(*map(stub.Classify, requests))
    by_model: dict[str, list[ClassifyResponse]] = {takes: [] for takes in FORMATS}
    for request, answer in zip(requests, answers, strict=True):
        by_model[request.model].append(answer)
    for takes in FLOATS:
        for pixels, floats in zip(by_model["uint8-nhwc"], by_model[takes], strict=True):
            np.testing.assert_allclose(logits_of(floats), logits_of(pixels), atol=1e-3)
            for one, other in zip(pixels.results, floats.results, strict=True):
                assert one.predictions[0].label == other.predictions[0].label


@pytest.mark.parametrize("takes", FLOATS)
async def test_pixels_alone_are_normalised_off_the_event_loop(
    packages: dict[str, Path], takes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()
    make = image_rows.row_maker

    def noted(manifest: Any) -> Any:
        threads.add(current_thread().name)
        return make(manifest)

    monkeypatch.setattr(image_rows, "row_maker", noted)
    pixels = noise(4)
    async with served([packages[takes]]) as stub:
        answer = await stub.Classify(raw_request(pixels, return_logits=True))
        model = await stub.GetModel(GetModelRequest())
    np.testing.assert_allclose(logits_of(answer), expected_logits(pixels), atol=1e-3)
    assert threads
    assert current_thread().name not in threads
    assert (model.height, model.width, model.channels) == (8, 8, 3)


async def test_pixels_of_another_size_are_refused_with_that_of_pixels(packages: dict[str, Path]) -> None:
    async with served([packages["fp32-nchw"]]) as stub:
        floats = np.zeros((3, 8, 8), np.float32).tobytes()
        request = ClassifyRequest(images=[Image(raw=noise(1).tobytes()), Image(raw=floats)])
        code, details = await refusal(stub.Classify(request))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert "image 2 of 2 has 768 raw bytes; the model takes 8 x 8 x 3 (height, width, channels) uint8" in details
        assert (await stub.Classify(raw_request(noise(1)))).results


@pytest.fixture(scope="module")
def front_end_of_two(packages: dict[str, Path]) -> Iterator[ServerProcess]:
    with server_process(packages["fp16-nchw"], *FAST, "--workers", 2) as server:
        yield server


def test_rows_of_floats_cross_between_processes(front_end_of_two: ServerProcess) -> None:
    pictures: list[NDArray[np.uint8]] = [noise(3, seed) for seed in range(8)]
    with Client(front_end_of_two.address) as client:
        for pixels in pictures:
            best = [result.predictions[0].index for result in client.classify(list(pixels), top_k=1).results]
            assert best == expected_logits(pixels).argmax(axis=1).tolist()
