"""gRPC messages that a client compresses: taken, and bounded by what they decompress to."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2 import ModelInferRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.fakes.colours import noise
from tests.serve.processes import FAST, ServerProcess, server_process
from tests.serve.services.classify_requests import raw_request
from tests.serve.services.open_inference_requests import infer_request, logits_of

MIB = 2**20
ALGORITHMS = [grpc.Compression.Gzip, grpc.Compression.Deflate]
BOMBS = 4


@pytest.fixture(scope="module")
def server(package: Path) -> Iterator[ServerProcess]:
    with server_process(package, *FAST, "--max-message-mb", 1) as server:
        yield server


@pytest.fixture(params=ALGORITHMS, ids=["gzip", "deflate"])
def channel(server: ServerProcess, request: pytest.FixtureRequest) -> Iterator[grpc.Channel]:
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.address, options, compression=request.param) as channel:
        yield channel


def bomb(mib: int = 64) -> ModelInferRequest:
    """A request of zeros, of which gzip leaves a thousandth."""
    return ModelInferRequest(raw_input_contents=[bytes(mib * MIB)])


def peak_memory_mib(server: ServerProcess) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) // 1024


def test_compressed_requests_are_answered_as_others_are(server: ServerProcess, channel: grpc.Channel) -> None:
    pixels = noise(8)
    with grpc.insecure_channel(server.address) as plain:
        expected = logits_of(GRPCInferenceServiceStub(plain).ModelInfer(infer_request(pixels)))
    stub = GRPCInferenceServiceStub(channel)
    assert (logits_of(stub.ModelInfer(infer_request(pixels))) == expected).all()
    (streamed,) = stub.ModelStreamInfer(iter([infer_request(pixels)]))
    assert (logits_of(streamed.infer_response) == expected).all()
    assert len(ClassifierStub(channel).Classify(raw_request(pixels)).results) == 8


def test_a_message_may_decompress_to_the_bound_and_no_further(channel: grpc.Channel) -> None:
    stub = GRPCInferenceServiceStub(channel)
    frame = bomb(0).ByteSize() + 4
    for size, code in ((MIB - frame, grpc.StatusCode.INVALID_ARGUMENT), (MIB, grpc.StatusCode.RESOURCE_EXHAUSTED)):
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(ModelInferRequest(raw_input_contents=[bytes(size)]))
        assert refused.value.code() is code, refused.value.details()


def test_what_decompresses_beyond_the_bound_is_refused_in_little_memory_and_the_next_request_is_answered(
    server: ServerProcess, channel: grpc.Channel
) -> None:
    stub = GRPCInferenceServiceStub(channel)
    stub.ModelInfer(infer_request(noise(8)))
    before = peak_memory_mib(server)

    def refusal(_number: int) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(bomb())
        return refused.value

    with ThreadPoolExecutor(BOMBS) as pool:
        refusals = list(pool.map(refusal, range(BOMBS)))
    with pytest.raises(grpc.RpcError) as ended:
        list(stub.ModelStreamInfer(iter([infer_request(noise(1)), bomb()])))
    for error in (*refusals, ended.value):
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "Decompressed message larger than max"
    # A bomb of 64 MiB is known for one by what it decompresses to beyond 1 MiB.
    assert peak_memory_mib(server) - before < 4 * BOMBS
    assert logits_of(stub.ModelInfer(infer_request(noise(8)))).shape == (8, 4)
