"""Tensors in shared memory over the Open Inference Protocol."""

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from fuseline.protos.open_inference_pb2 import (
    ModelInferRequest,
    SystemSharedMemoryRegisterRequest,
    SystemSharedMemoryUnregisterRequest,
)
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.fakes.colours import encoded, expected_logits, noise, plain
from tests.serve.conftest import Served, StartServer
from tests.serve.failures import refusal
from tests.serve.services.open_inference_requests import infer_request, logits_of
from tests.serve.services.test_open_inference_pictures import with_lengths
from tests.serve.shared_memory.objects import shared_object

SIZE = 4096
ROW = 8 * 8 * 3


@pytest.fixture
def memory() -> Iterator[Path]:
    """A shared memory object of `SIZE` bytes."""
    with shared_object(size=SIZE) as path:
        yield path


async def registered(
    served: Served, memory: Path, *, offset: int = 0, byte_size: int = SIZE
) -> GRPCInferenceServiceStub:
    """Register `memory` as `mine`."""
    stub = GRPCInferenceServiceStub(served.channel)
    await stub.SystemSharedMemoryRegister(
        SystemSharedMemoryRegisterRequest(name="mine", key=f"/{memory.name}", offset=offset, byte_size=byte_size)
    )
    return stub


def logits_at(memory: Path, offset: int, rows: int) -> NDArray[np.float32]:
    return np.frombuffer(memory.read_bytes()[offset : offset + 16 * rows], "<f4").reshape(rows, 4)


def put(memory: Path, data: bytes, offset: int = 0) -> None:
    with memory.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def lying_at(
    offset: int, byte_size: int, *shape: int, datatype: str = "UINT8", region: str = "mine"
) -> ModelInferRequest:
    """A request whose input lies in `region`."""
    request = ModelInferRequest(
        inputs=[ModelInferRequest.InferInputTensor(name="image", datatype=datatype, shape=shape)]
    )
    parameters = request.inputs[0].parameters
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = byte_size
    if offset:
        parameters["shared_memory_offset"].int64_param = offset
    return request


def answered_at(request: ModelInferRequest, offset: int, byte_size: int, region: str = "mine") -> ModelInferRequest:
    """`request`, its output going to `region`."""
    parameters = request.outputs.add(name="logits").parameters
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_offset"].int64_param = offset
    parameters["shared_memory_byte_size"].int64_param = byte_size
    return request


async def test_pixels_come_from_memory_and_logits_go_there(start_server: StartServer, memory: Path) -> None:
    served = await start_server()
    stub = await registered(served, memory, offset=64, byte_size=SIZE - 64)
    pixels = noise(3)
    put(memory, pixels.tobytes(), 64 + 10)
    response = await stub.ModelInfer(answered_at(lying_at(10, 3 * ROW, 3, 8, 8, 3), 1000, 100))
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("logits", "FP32", [3, 4])
    assert list(response.raw_output_contents) == [b""], "clients index the contents by the output"
    np.testing.assert_allclose(logits_at(memory, 1064, 3), expected_logits(pixels), atol=1e-5)
    assert not logits_at(memory, 1064 + 48, 10).any(), "what lies behind the answer stays"


async def test_an_answer_may_lie_where_its_own_input_lay(start_server: StartServer, memory: Path) -> None:
    stub = await registered(await start_server(), memory)
    put(memory, noise(1).tobytes())
    await stub.ModelInfer(answered_at(lying_at(0, ROW, 1, 8, 8, 3), 0, 16))
    np.testing.assert_allclose(logits_at(memory, 0, 1), expected_logits(noise(1)), atol=1e-5)


async def test_pictures_come_from_memory(start_server: StartServer, memory: Path) -> None:
    stub = await registered(await start_server(), memory)
    data = with_lengths([encoded(plain("green")), encoded(plain("blue"))])
    put(memory, data)
    logits = logits_of(await stub.ModelInfer(lying_at(0, len(data), 2, datatype="BYTES")))
    assert logits.argmax(axis=1).tolist() == [1, 2]


async def test_what_the_client_changes_meanwhile_changes_no_answer(start_server: StartServer, memory: Path) -> None:
    served = await start_server()
    stub = await registered(served, memory)
    put(memory, noise(1).tobytes())
    call = await served.busy_with(stub.ModelInfer(answered_at(lying_at(0, ROW, 1, 8, 8, 3), ROW, 16)))
    put(memory, bytes(ROW))
    await stub.SystemSharedMemoryUnregister(SystemSharedMemoryUnregisterRequest(name="mine"))
    served.backend.release()
    assert len((await call).outputs) == 1
    np.testing.assert_allclose(logits_at(memory, ROW, 1), expected_logits(noise(1)), atol=1e-5)


async def test_memory_that_shrank_is_an_error_and_never_a_crash(start_server: StartServer, memory: Path) -> None:
    served = await start_server()
    stub = await registered(served, memory)
    # While the batch runs the room for its answer goes.
    call = await served.busy_with(stub.ModelInfer(answered_at(lying_at(0, ROW, 1, 8, 8, 3), 1024, 16)))
    os.truncate(memory, 1024)
    served.backend.release()
    code, details = await refusal(call)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert re.search("'mine'", details), details
    assert os.stat(memory).st_size == 1024, "an answer must not make it grow"  # noqa: PTH116
    os.truncate(memory, 100)
    for request in (
        lying_at(0, ROW, 1, 8, 8, 3),
        answered_at(infer_request(noise(1)), 90, 16),
    ):
        assert (await refusal(stub.ModelInfer(request)))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert logits_of(await stub.ModelInfer(infer_request(noise(2)))).shape == (2, 4)


WRONG = {
    "another size than the shape": (
        lying_at(0, ROW - 1, 1, 8, 8, 3),
        r"191 bytes; shape \[1, 8, 8, 3\] of UINT8 has 192",
    ),
    "beyond the region": (lying_at(SIZE - ROW + 1, ROW, 1, 8, 8, 3), "not within"),
    "an offset below 0": (lying_at(-1, ROW, 1, 8, 8, 3), "'shared_memory_offset' of the input 'image' is -1"),
    "an offset of 2^63 - 1": (lying_at(2**63 - 1, ROW, 1, 8, 8, 3), "not within"),
    "a size below 0": (lying_at(0, -ROW, 1, 8, 8, 3), "'shared_memory_byte_size' of the input 'image' is -192"),
    "pictures of no bytes": (lying_at(0, 0, 1, datatype="BYTES"), "not within"),
    "pictures larger than any message": (lying_at(0, 2**40, 1, datatype="BYTES"), "at most 1048576 are taken"),
    "pictures whose lengths lie": (lying_at(0, 3, 1, datatype="BYTES"), "element 1|0 elements"),
    "a part too small for the answer": (answered_at(infer_request(noise(1)), 0, 15), r"16 bytes, 1 x 4 of FP32"),
    "an answer beyond the region": (answered_at(infer_request(noise(1)), SIZE - 15, 16), "not within"),
}


async def test_a_tensor_that_does_not_lie_in_its_region_is_refused(start_server: StartServer, memory: Path) -> None:
    served = await start_server(max_message_mb=1)
    stub = await registered(served, memory)
    for name, (request, reason) in WRONG.items():
        code, details = await refusal(stub.ModelInfer(request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT, f"{name}: {details}"
        assert re.search(reason, details), f"{name}: {details}"
    both = infer_request(noise(1))
    both.inputs[0].MergeFrom(lying_at(0, ROW).inputs[0])
    assert "its elements too" in (await refusal(stub.ModelInfer(both)))[1]
    unknown = lying_at(0, ROW, 1, 8, 8, 3, region="r" * 9999)
    code, details = await refusal(stub.ModelInfer(unknown))
    assert (code, len(details) < 300) == (grpc.StatusCode.NOT_FOUND, True)
    assert served.backend.calls == []


async def test_a_server_that_shares_no_memory_says_so(start_server: StartServer, memory: Path) -> None:
    served = await start_server(shared_memory="off")
    stub = GRPCInferenceServiceStub(served.channel)
    for call in (registered(served, memory), stub.ModelInfer(lying_at(0, ROW, 1, 8, 8, 3))):
        code, details = await refusal(asyncio.ensure_future(call) if asyncio.iscoroutine(call) else call)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "--shared-memory" in details
