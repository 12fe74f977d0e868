"""Requests of the load generator whose pictures lie in shared memory, against `fuseline serve`."""

from pathlib import Path

import grpc
import numpy as np
import pytest

from fuseline.benchmarks.load.protocols import OpenInference
from fuseline.benchmarks.load.shared_memory import SharedMemoryInference
from fuseline.protos.open_inference_pb2 import ModelInferRequest
from fuseline.serve.errors import BackendError
from tests.fakes.colours import expected_logits, noise, write_colours_package
from tests.serve.processes import FAST, server_process

PIXELS = noise(6)


def inference() -> SharedMemoryInference:
    plain = OpenInference("colours", "image", "UINT8", (8, 8, 3), channels_first=False, output_name="logits")
    return SharedMemoryInference(plain)


def test_a_request_names_the_place_of_its_pictures_and_the_same_ones_have_the_same_place() -> None:
    wire = inference()
    requests = [
        ModelInferRequest.FromString(wire.request(PIXELS[part], with_logits=False))
        for part in (slice(0, 2), slice(2, 3), slice(0, 2))
    ]
    told = [request.inputs[0].parameters for request in requests]
    places = [(each["shared_memory_offset"].int64_param, each["shared_memory_byte_size"].int64_param) for each in told]
    assert places == [(0, 384), (384, 192), (0, 384)]
    assert not any(request.raw_input_contents for request in requests)
    assert (Path("/dev/shm") / wire.region.name).read_bytes() == PIXELS[:3].tobytes()


def test_the_server_answers_while_the_region_is_registered_and_it_is_gone_afterwards(tmp_path: Path) -> None:
    wire = inference()
    request = wire.request(PIXELS, with_logits=True)
    with (
        server_process(write_colours_package(tmp_path / "colours"), *FAST) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(wire.method)
        with wire.region.registered(server.address):
            wire.check("the server", "fp32", call(request, timeout=30), expected_logits(PIXELS).astype(np.float32))
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=30)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    segment = Path("/dev/shm") / wire.region.name
    assert segment.exists()
    del wire
    assert not segment.exists()


def test_a_server_that_takes_no_shared_memory_is_told_so(tmp_path: Path) -> None:
    wire = inference()
    wire.request(PIXELS, with_logits=True)
    with (
        server_process(write_colours_package(tmp_path / "colours"), *FAST, "--shared-memory", "off") as server,
        pytest.raises(BackendError, match="takes no shared memory: FAILED_PRECONDITION"),
        wire.region.registered(server.address),
    ):
        pass
