"""What callers of a real server are told under overload, and what others notice of it."""

import asyncio
from collections import Counter

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.client import Client
from fuseline.serve.errors import DeadlineError, OverloadedError
from tests.fakes.colours import encoded, noise, plain
from tests.serve.conftest import Served, StartServer
from tests.serve.failures import failure
from tests.serve.services.open_inference_requests import infer_request

IMAGE = Image(raw=plain("red").tobytes())


def retry_delay_s(error: grpc.aio.AioRpcError) -> float:
    """Of the `google.rpc.RetryInfo`, as any gRPC client reads it."""
    rich = Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    assert (rich.code, rich.message) == (error.code().value[0], error.details())
    (detail,) = rich.details
    retry = RetryInfo()
    assert detail.Unpack(retry)
    return retry.retry_delay.ToTimedelta().total_seconds()


async def busy(start_server: StartServer, **changes: object) -> Served:
    """A server whose batches of one row take half a second by what was measured, and one runs now."""
    served = await start_server(max_batch=1, **changes)
    profile = next(iter(served.server.repository)).batcher._pool.profile
    profile.table[:] = [0.5]
    served.running = await served.busy_with(
        asyncio.ensure_future(served.stub.Classify(ClassifyRequest(images=[IMAGE])))
    )
    return served


async def test_the_queues_fault_is_resource_exhausted_with_a_retry_delay(start_server: StartServer) -> None:
    served = await busy(start_server)
    error = await failure(served.stub.Classify(ClassifyRequest(images=[IMAGE]), timeout=0.8))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1 row ahead" in error.details()
    # 0.5 s of the running batch and 0.5 s of its own, of which 0.8 s are there.
    assert 0.1 <= retry_delay_s(error) <= 0.3
    served.backend.release()
    await served.running


async def test_what_no_queue_could_help_is_deadline_exceeded_without_one(start_server: StartServer) -> None:
    served = await busy(start_server)
    error = await failure(served.stub.Classify(ClassifyRequest(images=[IMAGE]), timeout=0.4))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "an idle server takes" in error.details()
    assert "grpc-status-details-bin" not in dict(error.trailing_metadata())
    served.backend.release()
    await served.running


async def test_who_gives_no_deadline_waits_for_a_bounded_time(start_server: StartServer) -> None:
    served = await busy(start_server, max_queue_ms=700.0)
    second = asyncio.ensure_future(served.stub.Classify(ClassifyRequest(images=[IMAGE])))
    await served.until(lambda: served.queued_rows == 1)
    error = await failure(served.stub.Classify(ClassifyRequest(images=[IMAGE])))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "without a deadline waits 700 ms at most" in error.details()
    assert retry_delay_s(error) > 0
    served.backend.release()
    await asyncio.gather(served.running, second)


async def test_encoded_images_are_refused_before_they_are_decoded(start_server: StartServer) -> None:
    served = await busy(start_server)
    error = await failure(
        served.stub.Classify(ClassifyRequest(images=[Image(encoded=b"no image at all")]), timeout=0.8)
    )
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    served.backend.release()
    await served.running


async def test_a_picture_that_is_decoded_keeps_its_place(start_server: StartServer) -> None:
    """Its room is promised at its arrival, and is free again whatever becomes of it."""
    served = await start_server(max_queue_rows=4, max_images_per_request=4)
    batcher = next(iter(served.server.repository)).batcher
    good = served.stub.Classify(ClassifyRequest(images=[Image(encoded=encoded(noise(1)[0]))]))
    bad = await failure(served.stub.Classify(ClassifyRequest(images=[Image(encoded=b"GIF89a")])))
    assert bad.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len((await good).results) == 1
    assert batcher.load(0.0).waiting_rows == 0


async def test_a_requests_own_timeout_holds_in_a_call_and_in_a_stream(start_server: StartServer) -> None:
    served = await busy(start_server)
    error = await failure(served.stub.Classify(ClassifyRequest(images=[IMAGE], timeout_ms=800)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    # The earlier of the two.
    error = await failure(served.stub.Classify(ClassifyRequest(images=[IMAGE], timeout_ms=5000), timeout=0.4))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    stream = served.stub.ClassifyStream()
    await stream.write(ClassifyRequest(images=[IMAGE], id="late", timeout_ms=800))
    await stream.write(ClassifyRequest(images=[IMAGE], id="hopeless", timeout_ms=400))
    await stream.write(ClassifyRequest(images=[IMAGE], id="in time"))
    told = {}
    for _ in range(2):
        answer = await stream.read()
        told[answer.id] = answer.error
    assert told["late"].error_name == "OverloadedError"
    assert 100 <= told["late"].retry_after_ms <= 300
    assert (told["hopeless"].error_name, told["hopeless"].retry_after_ms) == ("DeadlineError", 0)
    served.backend.release()
    assert (await stream.read()).id == "in time"
    await served.running


async def test_tritons_timeout_parameter_is_a_deadline(start_server: StartServer) -> None:
    served = await busy(start_server)
    stub = GRPCInferenceServiceStub(served.channel)
    for microseconds, code in ((800_000, "RESOURCE_EXHAUSTED"), (400_000, "DEADLINE_EXCEEDED")):
        request = infer_request(noise(1))
        request.parameters["timeout"].int64_param = microseconds
        assert (await failure(stub.ModelInfer(request))).code().name == code
        stream = stub.ModelStreamInfer()
        await stream.write(request)
        assert (await stream.read()).error_message.startswith(code)
        stream.cancel()
    served.backend.release()
    await served.running


async def test_the_client_raises_with_the_delay(start_server: StartServer) -> None:
    served = await busy(start_server)

    def classify(timeout_s: float) -> None:
        with Client(f"127.0.0.1:{served.server.port}", retries=0) as client:
            client.classify(encoded(noise(1)[0]), timeout_s=timeout_s)

    with pytest.raises(OverloadedError) as refused:
        await asyncio.to_thread(classify, 0.8)
    assert refused.value.retry_after_s is not None
    assert 0.05 <= refused.value.retry_after_s <= 0.4
    with pytest.raises(DeadlineError):
        await asyncio.to_thread(classify, 0.4)
    served.backend.release()
    await served.running


async def test_of_thousands_at_once_each_is_answered_or_told_why_and_counted(start_server: StartServer) -> None:
    """gRPC drops some of 1,000 calls that wait and all above 3,000, unless told otherwise, with a bare CANCELLED."""
    served = await start_server(max_queue_rows=64, max_images_per_request=8, http_port=0)
    request = ClassifyRequest(images=[IMAGE])
    count = 5000

    async def call() -> tuple[str, bool]:
        try:
            await served.stub.Classify(request, timeout=60)
        except grpc.aio.AioRpcError as error:
            return error.code().name, "fuseline-error" in dict(error.trailing_metadata())
        return "OK", True

    outcomes = Counter(await asyncio.gather(*(call() for _ in range(count))))
    assert set(outcomes) <= {("OK", True), ("RESOURCE_EXHAUSTED", True)}
    assert outcomes["OK", True] >= 64
    assert sum(served.server._metrics.requests_by_code().values()) == count


@pytest.mark.parametrize("protocol", ["ClassifyStream", "ModelStreamInfer"])
async def test_streams_that_are_never_read_dont_fill_the_queue_before_others(
    start_server: StartServer, protocol: str
) -> None:
    served = await start_server(max_batch=4)
    served.backend.hold()
    if protocol == "ClassifyStream":
        streams = [served.stub.ClassifyStream() for _ in range(4)]
        request = ClassifyRequest(images=[IMAGE])
    else:
        streams = [GRPCInferenceServiceStub(served.channel).ModelStreamInfer() for _ in range(4)]
        request = infer_request(noise(1))

    async def send(stream: grpc.aio.StreamStreamCall) -> None:
        while True:
            await stream.write(request)

    sending = [asyncio.create_task(send(stream)) for stream in streams]
    await served.until_busy()
    for _ in range(300):
        await asyncio.sleep(0)
        assert served.queued_rows <= 4 + 2 * len(streams)
    served.backend.calls.clear()
    unary = asyncio.ensure_future(served.stub.Classify(ClassifyRequest(images=[IMAGE])))
    served.backend.release()
    timing = (await unary).timing
    assert timing.batch_rows <= 4
    for task in sending:
        task.cancel()
    for stream in streams:
        stream.cancel()


async def test_how_far_predictions_missed_is_in_the_metrics(start_server: StartServer) -> None:
    served = await start_server()
    await served.stub.Classify(ClassifyRequest(images=[IMAGE] * 3), timeout=30)
    registry = served.server._metrics.registry

    def within(bound: str) -> float | None:
        labels = {"model": "colours", "version": "1", "le": bound}
        return registry.get_sample_value("fuseline_prediction_miss_seconds_bucket", labels)

    await served.until(lambda: within("+Inf") == 1)
    # One request on an idle server misses by less than a second either way.
    assert (within("-1.0"), within("1.0")) == (0, 1)
