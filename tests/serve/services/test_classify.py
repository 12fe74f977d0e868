"""The gRPC service, through a real server and a real runtime in this process."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from numpy.typing import NDArray

import fuseline.serve.lanes.lane_choice
import fuseline.serve.lanes.warm_lanes
from fuseline.protos.classify_pb2 import ClassifyRequest, GetModelRequest, Image
from fuseline.serve.images import decode_image
from fuseline.serve.services.top_k import top_k_from_logits
from tests.fakes.backends import slow_warm_up
from tests.fakes.colours import HEIGHT, LABELS, WIDTH, encoded, expected_logits, noise, plain
from tests.serve.bad_images import bad_images
from tests.serve.conftest import StartServer
from tests.serve.failures import refusal
from tests.serve.services.classify_requests import logits_of, raw_request


async def test_raw_pixels_get_their_own_logits_in_order_with_softmax_and_labels(start_server: StartServer) -> None:
    served = await start_server(max_batch=4)
    pixels = noise(7)
    response = await served.stub.Classify(raw_request(pixels, top_k=4, return_logits=True, id="seven"))
    logits = logits_of(response)
    np.testing.assert_allclose(logits, expected_logits(pixels), atol=1e-5)
    for row, result in zip(logits.astype(np.float64), response.results, strict=True):
        probabilities = np.exp(row) / np.exp(row).sum()
        assert [p.index for p in result.predictions] == np.argsort(-row).tolist()
        assert [p.label for p in result.predictions] == [LABELS[i] for i in np.argsort(-row)]
        np.testing.assert_allclose([p.probability for p in result.predictions], np.sort(probabilities)[::-1], rtol=1e-5)
    assert (response.model, response.model_version, response.id) == ("colours", "1", "seven")


async def test_top_k_is_1_unless_given_and_logits_come_only_when_asked_for(start_server: StartServer) -> None:
    served = await start_server()
    response = await served.stub.Classify(raw_request(plain("blue")[np.newaxis]))
    assert [[p.label for p in result.predictions] for result in response.results] == [["blue"]]
    assert response.results[0].logits == b""


async def test_timing_tells_queue_compute_and_batch(start_server: StartServer) -> None:
    served = await start_server()
    raw = await served.stub.Classify(raw_request(noise(3)))
    assert raw.timing.preprocess_ms == 0
    assert raw.timing.compute_ms > 0
    assert raw.timing.queue_ms >= 0
    assert raw.timing.batch_rows == 3
    from_file = await served.stub.Classify(ClassifyRequest(images=[Image(encoded=encoded(plain("red")))]))
    assert from_file.timing.preprocess_ms > 0


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
async def test_encoded_images_are_decoded_resized_and_cropped(start_server: StartServer, format: str) -> None:
    served = await start_server()
    data = encoded(noise(1)[0].repeat(5, 0).repeat(9, 1), format)
    pixels = decode_image(data, height=HEIGHT, width=WIDTH, resize_shorter_side=HEIGHT)
    response = await served.stub.Classify(ClassifyRequest(images=[Image(encoded=data)], return_logits=True))
    np.testing.assert_allclose(logits_of(response), expected_logits(pixels[np.newaxis]), atol=1e-5)


async def test_raw_and_encoded_images_may_be_mixed(start_server: StartServer) -> None:
    served = await start_server()
    images = [
        Image(raw=plain("red").tobytes()),
        Image(encoded=encoded(plain("green", 40, 50))),
        Image(raw=plain("dark").tobytes()),
        Image(encoded=encoded(plain("blue", 50, 40))),
    ]
    response = await served.stub.Classify(ClassifyRequest(images=images))
    assert [r.predictions[0].label for r in response.results] == ["red", "green", "dark", "blue"]


async def test_requests_share_a_batch_and_get_their_own_answers(start_server: StartServer) -> None:
    served = await start_server(max_batch=8)
    first = await served.busy_with(served.stub.Classify(raw_request(noise(1))))
    calls = [served.stub.Classify(raw_request(noise(1, seed), return_logits=True)) for seed in range(1, 6)]
    waiting = asyncio.gather(*calls)
    await served.until(lambda: served.queued_rows == 5)
    served.backend.release()
    responses = await waiting
    await first
    for seed, response in enumerate(responses, start=1):
        np.testing.assert_allclose(logits_of(response), expected_logits(noise(1, seed)), atol=1e-5)
        assert response.timing.batch_rows == 5
    assert served.backend.calls == [1, 6]


INVALID = {
    "no image": (ClassifyRequest(), "no image"),
    "too many images": (raw_request(noise(9)), "9 images, at most 8"),
    "an image without content": (ClassifyRequest(images=[Image()]), "encoded.*raw"),
    "too few raw bytes": (ClassifyRequest(images=[Image(raw=bytes(191))]), "191 raw bytes.*8 x 8 x 3.*192"),
    "too many raw bytes": (ClassifyRequest(images=[Image(raw=bytes(193))]), "193 raw bytes.*8 x 8 x 3.*192"),
    "no raw bytes": (ClassifyRequest(images=[Image(raw=b"")]), "0 raw bytes.*192"),
    "second image wrong": (ClassifyRequest(images=[Image(raw=bytes(192)), Image(raw=b"x")]), "image 2 of 2 has 1 raw"),
    "top_k 0": (raw_request(noise(1), top_k=0), "top_k is 0.*from 1 to 4"),
    "top_k above the classes": (raw_request(noise(1), top_k=5), "top_k is 5.*from 1 to 4"),
} | {
    name: (ClassifyRequest(images=[Image(raw=bytes(192)), Image(encoded=data)]), f"image 2 of 2.*{reason}")
    for name, (data, reason) in bad_images().items()
}


async def test_an_invalid_request_is_refused_with_the_reason_and_never_reaches_a_batch(
    start_server: StartServer,
) -> None:
    served = await start_server(max_images_per_request=8)
    for name, (request, reason) in INVALID.items():
        code, details = await refusal(served.stub.Classify(request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT, name
        assert re.search(reason, details), f"{name}: {details}"
    assert served.backend.calls == []
    assert (await served.stub.Classify(raw_request(noise(1)))).results


async def test_an_unknown_model_is_not_found_and_the_served_ones_are_named(start_server: StartServer) -> None:
    served = await start_server()
    for call in (
        served.stub.Classify(raw_request(noise(1), model="cats")),
        served.stub.GetModel(GetModelRequest(model="cats")),
    ):
        code, details = await refusal(call)
        assert code is grpc.StatusCode.NOT_FOUND
        assert re.search("'cats'.*served: colours", details)


async def test_a_message_over_the_limit_is_refused_with_the_limit(start_server: StartServer) -> None:
    served = await start_server(max_message_mb=1)
    code, details = await refusal(served.stub.Classify(ClassifyRequest(images=[Image(raw=bytes(2**20))])))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(2**20) in details
    description = await served.stub.GetModel(GetModelRequest())
    assert description.max_message_bytes == 2**20
    assert (await served.stub.Classify(raw_request(noise(1)))).results


async def test_a_full_queue_refuses_at_once_and_loses_nothing(start_server: StartServer) -> None:
    served = await start_server(max_queue_rows=4, max_images_per_request=4)
    admitted = [await served.busy_with(served.stub.Classify(raw_request(noise(1))))]
    admitted.append(served.stub.Classify(raw_request(noise(3))))
    await served.until(lambda: served.queued_rows == 3)
    for request in (raw_request(noise(2)), ClassifyRequest(images=[Image(encoded=encoded(plain("red")))] * 2)):
        code, details = await refusal(served.stub.Classify(request))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert re.search("3.*4|4.*3", details), details
    served.backend.release()
    assert [len((await call).results) for call in admitted] == [1, 3]


async def test_a_passed_deadline_leaves_the_queue(start_server: StartServer) -> None:
    served = await start_server()
    first = await served.busy_with(served.stub.Classify(raw_request(noise(1))))
    code, _ = await refusal(served.stub.Classify(raw_request(noise(2)), timeout=0.2))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    await served.until(lambda: served.queued_rows == 0)
    served.backend.release()
    assert (await first).results
    assert served.backend.calls == [1]


async def test_a_deadline_that_the_measured_batches_cannot_meet_is_refused_at_once(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuseline.serve.lanes.warm_lanes, "warm_up", slow_warm_up)
    served = await start_server()
    first = await served.busy_with(served.stub.Classify(raw_request(noise(1))))
    call = served.stub.Classify(raw_request(noise(1)), timeout=500)
    code, _ = await refusal(call)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert dict(await call.trailing_metadata())["fuseline-error"] == "DeadlineError"
    served.backend.release()
    assert (await first).results


async def test_a_cancelled_call_leaves_the_queue(start_server: StartServer) -> None:
    served = await start_server()
    first = await served.busy_with(served.stub.Classify(raw_request(noise(1))))
    second = served.stub.Classify(raw_request(noise(2)))
    await served.until(lambda: served.queued_rows == 2)
    second.cancel()
    await served.until(lambda: served.queued_rows == 0)
    served.backend.release()
    assert (await first).results
    assert served.backend.calls == [1]


async def test_a_failing_backend_fails_its_batch_only_and_tells_an_id_that_the_log_has(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    served = await start_server()

    def fail(_: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise RuntimeError("secret path /models/x")

    served.backend.replacement = fail
    with caplog.at_level(logging.ERROR):
        code, details = await refusal(served.stub.Classify(raw_request(noise(1))))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in details
    error_id = re.search(r"error ([0-9a-f]{12})", details)
    assert error_id is not None
    assert [error_id[1] in record.message and "secret" in str(record.exc_text) for record in caplog.records] == [True]
    served.backend.replacement = None
    assert (await served.stub.Classify(raw_request(noise(1)))).results


async def test_logits_that_are_not_finite_are_an_error_of_their_request_only(start_server: StartServer) -> None:
    served = await start_server()
    first = await served.busy_with(served.stub.Classify(raw_request(noise(1))))

    def one_nan(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits = expected_logits(pixels).astype(np.float32)
        logits[(pixels == 255).all(axis=(1, 2, 3))] = np.nan
        return logits

    good = served.stub.Classify(raw_request(noise(1)))
    await served.until(lambda: served.queued_rows == 1)
    bad = served.stub.Classify(raw_request(np.full((1, HEIGHT, WIDTH, 3), 255, np.uint8)))
    await served.until(lambda: served.queued_rows == 2)
    served.backend.replacement = one_nan
    served.backend.release()
    assert (await good).timing.batch_rows == 2
    assert (await refusal(bad))[0] is grpc.StatusCode.INTERNAL
    await first


async def test_get_model_describes_the_model_and_the_limits(start_server: StartServer) -> None:
    served = await start_server(max_batch=6, max_images_per_request=5)
    description = await served.stub.GetModel(GetModelRequest(model="colours"))
    assert description.name == "colours"
    assert tuple(description.labels) == LABELS
    assert (description.height, description.width, description.channels) == (8, 8, 3)
    assert (description.resize_shorter_side, description.interpolation) == (8, "bilinear")
    assert (description.backend, description.precision) == ("onnxruntime", "fp32")
    assert description.backend_reason
    assert tuple(description.batch_buckets) == (1, 2, 3, 4, 6)
    assert description.max_images_per_request == 5
    assert json.loads(description.verification_json) == []
    assert (description.lanes.lanes, description.lanes.reason) == (1, "one thread computes")


async def test_get_model_and_the_metrics_show_the_lanes_and_the_figures_that_they_rest_on(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuseline.serve.lanes.lane_choice, "SLOW_CALL_SECONDS", 0.0)
    monkeypatch.setattr(fuseline.serve.lanes.lane_choice, "LEAST_SHARE", 0.0)
    served = await start_server(threads=2)
    lanes = (await served.stub.GetModel(GetModelRequest(model="colours"))).lanes
    assert lanes.lanes == 2
    assert lanes.reason.startswith("under load 2 compute ")
    assert sorted(lanes.images_per_s) == [1, 2]
    assert min(lanes.images_per_s.values()) > 0
    value = served.server._metrics.registry.get_sample_value
    assert value("fuseline_lanes", {"model": "colours"}) == 2
    measured = value("fuseline_warm_up_images_per_second", {"model": "colours", "lanes": "2"})
    assert measured == lanes.images_per_s[2]


async def test_health_is_serving_when_ready_and_reflection_lists_the_services(start_server: StartServer) -> None:
    served = await start_server()
    health = HealthStub(served.channel)
    for service in ("", "fuseline.v1.Classifier"):
        answer = await health.Check(HealthCheckRequest(service=service))
        assert answer.status == HealthCheckResponse.SERVING

    async def list_services() -> AsyncIterator[ServerReflectionRequest]:
        yield ServerReflectionRequest(list_services="")

    async for answer in ServerReflectionStub(served.channel).ServerReflectionInfo(list_services()):
        names = {service.name for service in answer.list_services_response.service}
        assert {"fuseline.v1.Classifier", "grpc.health.v1.Health"} <= names


async def test_drain_turns_health_answers_what_was_admitted_and_refuses_the_rest(start_server: StartServer) -> None:
    served = await start_server()
    running = await served.busy_with(served.stub.Classify(raw_request(noise(1))))
    queued = served.stub.Classify(raw_request(noise(2)))
    await served.until(lambda: served.queued_rows == 2)
    watch = HealthStub(served.channel).Watch(HealthCheckRequest(service=""))
    assert (await watch.read()).status == HealthCheckResponse.SERVING
    draining = asyncio.create_task(served.server.drain())
    assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
    watch.cancel()
    code, details = await refusal(served.stub.Classify(raw_request(noise(1))))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in details
    served.backend.release()
    assert [len((await call).results) for call in (running, queued)] == [1, 2]
    await draining
    assert served.backend.closed


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_top_k_breaks_ties_by_the_lower_index_and_never_overflows(k: int) -> None:
    rows = np.array(
        [[1, 3, 3, 0, 3, 2], [0, 0, 0, 0, 0, 0], [1e4, -1e4, 1e4, 0, 0, 1e4], [5, 4, 3, 2, 1, 0]], np.float32
    )
    indices, probabilities = top_k_from_logits(rows, k)
    for row, its_indices, its_probabilities in zip(rows.astype(np.float64), indices, probabilities, strict=True):
        expected = sorted(range(6), key=lambda index: (-row[index], index))[:k]
        assert its_indices.tolist() == expected
        softmax = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        np.testing.assert_allclose(its_probabilities, softmax[expected], rtol=1e-6)
