"""The Open Inference Protocol for models that take normalised floats, as clients of ordinary exports send them."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from fuseline.protos.open_inference_pb2 import (
    InferTensorContents,
    ModelConfigRequest,
    ModelInferRequest,
    ModelInferResponse,
    ModelInput,
    ModelMetadataRequest,
    SystemSharedMemoryRegisterRequest,
)
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.input_rows import rows_from_pixels
from fuseline.serve.model_package import load_package
from fuseline.serve.server import Server
from tests.fakes.colours import encoded, expected_logits, noise, write_colours_package
from tests.serve.conftest import settings
from tests.serve.failures import refusal
from tests.serve.services.test_open_inference_pictures import with_lengths
from tests.serve.shared_memory.objects import shared_object

FORMATS = {"fp32-nchw": "FP32", "fp16-nchw": "FP16"}


@pytest.fixture(params=FORMATS)
def package(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_colours_package(tmp_path / request.param, takes=request.param)


@pytest.fixture
async def stub(package: Path) -> AsyncIterator[GRPCInferenceServiceStub]:
    server = Server.for_packages([package], settings())
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield GRPCInferenceServiceStub(channel)
    finally:
        await server.drain()


def rows_for(package: Path, pixels: NDArray[np.uint8]) -> NDArray[np.generic]:
    """What a client of `package` sends for `pixels`."""
    manifest = load_package(package).manifest
    return rows_from_pixels(pixels, manifest.input, manifest.normalization)


def float_request(package: Path, rows: NDArray[np.generic]) -> ModelInferRequest:
    tensor = ModelInferRequest.InferInputTensor(name="input", datatype=FORMATS[package.name], shape=rows.shape)
    return ModelInferRequest(inputs=[tensor], raw_input_contents=[rows.tobytes()])


def check(response: ModelInferResponse, pixels: NDArray[np.uint8]) -> None:
    (output,), (raw,) = response.outputs, response.raw_output_contents
    assert (output.name, output.datatype) == ("output", "FP32")
    np.testing.assert_allclose(np.frombuffer(raw, "<f4").reshape(output.shape), expected_logits(pixels), atol=4e-3)


async def test_normalised_floats_get_the_logits_of_their_pictures(
    package: Path, stub: GRPCInferenceServiceStub
) -> None:
    pixels = noise(3)
    rows = rows_for(package, pixels)
    assert rows.shape == (3, 3, 8, 8)
    check(await stub.ModelInfer(float_request(package, rows)), pixels)
    pictures = ModelInferRequest(
        inputs=[ModelInferRequest.InferInputTensor(name="input", datatype="BYTES", shape=[3])],
        raw_input_contents=[with_lengths([encoded(picture) for picture in pixels])],
    )
    check(await stub.ModelInfer(pictures), pixels)


async def test_floats_come_from_shared_memory(package: Path, stub: GRPCInferenceServiceStub) -> None:
    pixels = noise(2)
    request = float_request(package, rows_for(package, pixels))
    with shared_object(request.raw_input_contents.pop()) as path:
        size = len(path.read_bytes())
        await stub.SystemSharedMemoryRegister(
            SystemSharedMemoryRegisterRequest(name="mine", key=path.name, byte_size=size)
        )
        request.inputs[0].parameters["shared_memory_region"].string_param = "mine"
        request.inputs[0].parameters["shared_memory_byte_size"].int64_param = size
        check(await stub.ModelInfer(request), pixels)


async def test_typed_floats_are_taken_for_fp32_alone(package: Path, stub: GRPCInferenceServiceStub) -> None:
    pixels = noise(1)
    rows = rows_for(package, pixels)
    request = float_request(package, rows)
    request.ClearField("raw_input_contents")
    request.inputs[0].contents.CopyFrom(InferTensorContents(fp32_contents=rows.ravel().tolist()))
    if package.name == "fp32-nchw":
        check(await stub.ModelInfer(request), pixels)
    else:
        assert "those of FP16 belong in raw_input_contents" in (await refusal(stub.ModelInfer(request)))[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
async def test_numbers_that_are_not_finite_are_the_clients_error(
    package: Path, stub: GRPCInferenceServiceStub, bad: float
) -> None:
    rows = rows_for(package, noise(2))
    rows[1, 2, 3, 4] = bad
    code, details = await refusal(stub.ModelInfer(float_request(package, rows)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "[1, 2, 3, 4]" in details


async def test_numbers_too_large_for_the_network_are_the_clients_error(tmp_path: Path) -> None:
    package = write_colours_package(tmp_path / "fp32-nchw", takes="fp32-nchw")
    server = Server.for_packages([package], settings())
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            rows = np.full((1, 3, 8, 8), np.finfo(np.float32).max)
            code, details = await refusal(GRPCInferenceServiceStub(channel).ModelInfer(float_request(package, rows)))
    finally:
        await server.drain()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "too large" in details


async def test_pixels_are_refused_with_what_is_expected(package: Path, stub: GRPCInferenceServiceStub) -> None:
    request = float_request(package, rows_for(package, noise(1)))
    request.inputs[0].datatype = "UINT8"
    assert f"is 'UINT8', expected '{FORMATS[package.name]}'" in (await refusal(stub.ModelInfer(request)))[1]
    request = float_request(package, np.zeros((1, 8, 8, 3), np.float32))
    assert "expected [images, 3, 8, 8] (channels, height, width)" in (await refusal(stub.ModelInfer(request)))[1]


async def test_metadata_and_configuration_tell_the_floats(package: Path, stub: GRPCInferenceServiceStub) -> None:
    datatype = FORMATS[package.name]
    metadata = await stub.ModelMetadata(ModelMetadataRequest())
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("input", datatype, [-1, 3, 8, 8])]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [("output", "FP32", [-1, 4])]
    (taken,) = (await stub.ModelConfig(ModelConfigRequest())).config.input
    assert (taken.format, list(taken.dims)) == (ModelInput.FORMAT_NCHW, [3, 8, 8])
    assert taken.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[taken.data_type].name == (
        f"TYPE_{datatype}"
    )
