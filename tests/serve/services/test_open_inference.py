"""inference.GRPCInferenceService against a server with a tiny real model."""

import asyncio
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

from fuseline.protos.open_inference_pb2 import (
    TYPE_FP16,
    TYPE_FP32,
    TYPE_UINT8,
    ModelConfigRequest,
    ModelInferRequest,
    ModelInput,
    ModelInstanceGroup,
    ModelMetadataRequest,
    ModelQueuePolicy,
    ModelReadyRequest,
    ModelStatisticsRequest,
    RepositoryIndexRequest,
    ServerLiveRequest,
    ServerMetadataRequest,
    ServerReadyRequest,
)
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.backends.base import BackendFacts
from fuseline.serve.services.open_inference_config import config_of
from tests.fakes.colours import expected_logits, noise
from tests.serve.conftest import Served, StartServer, settings
from tests.serve.failures import refusal
from tests.serve.services.classify_requests import raw_request
from tests.serve.services.open_inference_requests import infer_request, logits_of

SERVICE = "inference.GRPCInferenceService"


def stub_of(served: Served) -> GRPCInferenceServiceStub:
    return GRPCInferenceServiceStub(served.channel)


@pytest.mark.parametrize("typed", [False, True])
async def test_logits_are_those_of_classify_bit_for_bit_in_order(start_server: StartServer, typed: bool) -> None:
    served = await start_server(max_batch=4)
    pixels = noise(7)
    response = await stub_of(served).ModelInfer(infer_request(pixels, typed=typed, model_name="colours", id="seven"))
    assert (response.model_name, response.model_version, response.id) == ("colours", "1", "seven")
    classified = await served.stub.Classify(raw_request(pixels, return_logits=True))
    assert [row.tobytes() for row in logits_of(response)] == [result.logits for result in classified.results]
    np.testing.assert_allclose(logits_of(response), expected_logits(pixels), atol=1e-5)


async def test_the_only_model_its_version_and_its_output_need_not_be_named(start_server: StartServer) -> None:
    stub = stub_of(await start_server())
    bare = await stub.ModelInfer(infer_request(noise(2)))
    outputs = [ModelInferRequest.InferRequestedOutputTensor(name="logits")]
    named = await stub.ModelInfer(infer_request(noise(2), model_name="colours", model_version="1", outputs=outputs))
    for response in (bare, named):
        response.ClearField("parameters")
    assert bare == named


async def test_requests_share_a_batch_with_each_other_and_with_classify(start_server: StartServer) -> None:
    served = await start_server(max_batch=8)
    first = await served.busy_with(stub_of(served).ModelInfer(infer_request(noise(1))))
    waiting = [stub_of(served).ModelInfer(infer_request(noise(2, seed))) for seed in (1, 2)]
    classify = served.stub.Classify(raw_request(noise(1, 3), return_logits=True))
    gathered = asyncio.gather(first, *waiting, classify)
    await served.until(lambda: served.queued_rows == 5)
    served.backend.release()
    _, *inferred, classified = await gathered
    assert served.backend.calls == [1, 6]
    for seed, response in enumerate(inferred, start=1):
        np.testing.assert_allclose(logits_of(response), expected_logits(noise(2, seed)), atol=1e-5)
    assert classified.timing.batch_rows == 5


def changed(**fields: object) -> ModelInferRequest:
    """A good request whose input has other `fields`."""
    request = infer_request(noise(2))
    request.inputs[0].MergeFrom(ModelInferRequest.InferInputTensor(**fields))
    return request


def reshaped(*shape: int) -> ModelInferRequest:
    request = infer_request(noise(2))
    request.inputs[0].shape[:] = shape
    return request


def typed_with(**contents: object) -> ModelInferRequest:
    request = infer_request(noise(1), typed=True)
    request.inputs[0].ClearField("contents")
    request.inputs[0].contents.SetInParent()
    for field, values in contents.items():
        getattr(request.inputs[0].contents, field).extend(values)
    return request


def with_output(**fields: object) -> ModelInferRequest:
    return infer_request(noise(1), outputs=[ModelInferRequest.InferRequestedOutputTensor(**fields)])


def with_raw(*raw: bytes) -> ModelInferRequest:
    request = infer_request(noise(1))
    request.raw_input_contents[:] = raw
    return request


EXPECTED_SHAPE = r"expected \[images, 8, 8, 3\]"
INVALID = {
    "no input": (ModelInferRequest(), "0 inputs are none; the model takes 'image'"),
    "another input": (changed(name="pixels"), "1 inputs are .'pixels'.*'image'"),
    "two inputs": (
        ModelInferRequest(inputs=[infer_request(noise(1)).inputs[0]] * 2),
        r"2 inputs are \['image', 'image'\].*'image', once",
    ),
    "another datatype": (changed(datatype="FP32"), "is 'FP32', expected 'UINT8', or 'BYTES'"),
    "no batch dimension": (reshaped(8, 8, 3), rf"shape \[8, 8, 3\], {EXPECTED_SHAPE}"),
    "channels first": (reshaped(2, 3, 8, 8), rf"shape \[2, 3, 8, 8\], {EXPECTED_SHAPE}"),
    "no image": (reshaped(0, 8, 8, 3), EXPECTED_SHAPE),
    "a negative number of images": (reshaped(-1, 8, 8, 3), EXPECTED_SHAPE),
    "a thousand dimensions": (reshaped(*[1] * 1000), EXPECTED_SHAPE),
    "too many images": (infer_request(noise(9)), "9 images, at most 8"),
    "more images than any": (reshaped(2**62, 8, 8, 3), "4611686018427387904 images, at most 8"),
    "too few bytes": (with_raw(bytes(191)), r"191 bytes; shape \[1, 8, 8, 3\] of UINT8 has 192"),
    "too many bytes": (with_raw(bytes(193)), "193 bytes.*192"),
    "no elements": (with_raw(), "0 raw_input_contents for 1 input"),
    "raw contents too many": (with_raw(bytes(192), b""), "2 raw_input_contents for 1 input"),
    "raw and typed": (changed(contents={"uint_contents": [1]}), "both contents and raw_input_contents"),
    "an empty typed list": (typed_with(), "no field of contents.*uint_contents"),
    "the wrong typed list": (typed_with(int_contents=[0] * 192), "in int_contents.*uint_contents"),
    "two typed lists": (typed_with(uint_contents=[0] * 192, fp32_contents=[0]), "in uint_contents, fp32_contents"),
    "too few typed elements": (typed_with(uint_contents=[0] * 191), "191 bytes.*192"),
    "a typed element beyond the type": (typed_with(uint_contents=[256] * 192), "element 256; UINT8 ends at 255"),
    "another output": (with_output(name="labels"), "'labels' was asked for; the model has 'logits' only"),
    "names too long to repeat": (changed(name="n" * 2**16), "model takes 'image'"),
}


async def test_an_invalid_request_is_refused_with_the_reason_and_never_reaches_a_batch(
    start_server: StartServer,
) -> None:
    served = await start_server(max_images_per_request=8)
    for name, (request, reason) in INVALID.items():
        code, details = await refusal(stub_of(served).ModelInfer(request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT, f"{name}: {details}"
        assert re.search(reason, details), f"{name}: {details}"
    assert served.backend.calls == []
    assert logits_of(await stub_of(served).ModelInfer(infer_request(noise(8)))).shape == (8, 4)
    assert served.server.answers() == f"{len(INVALID)} INVALID_ARGUMENT, 1 OK"


async def test_a_model_or_version_that_is_not_served_is_not_found(start_server: StartServer) -> None:
    stub = stub_of(await start_server())
    for model, version, reason in (
        ("cats", "", "'cats'.*served: colours"),
        ("colours", "2", "version '2' of colours.*served: '1'"),
    ):
        for call in (
            stub.ModelInfer(infer_request(noise(1), model_name=model, model_version=version)),
            stub.ModelMetadata(ModelMetadataRequest(name=model, version=version)),
            stub.ModelConfig(ModelConfigRequest(name=model, version=version)),
            stub.ModelStatistics(ModelStatisticsRequest(name=model, version=version)),
        ):
            code, details = await refusal(call)
            assert code is grpc.StatusCode.NOT_FOUND
            assert re.search(reason, details)
        assert not (await stub.ModelReady(ModelReadyRequest(name=model, version=version))).ready


async def test_a_message_over_the_limit_is_refused_with_the_limit(start_server: StartServer) -> None:
    served = await start_server(max_message_mb=1)
    code, details = await refusal(stub_of(served).ModelInfer(with_raw(bytes(2**20))))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(2**20) in details


async def test_it_tells_of_the_server_its_models_and_their_tensors(start_server: StartServer) -> None:
    stub = stub_of(await start_server(max_batch=6, max_images_per_request=5, max_delay_ms=1.5))
    assert (await stub.ServerLive(ServerLiveRequest())).live
    assert (await stub.ServerReady(ServerReadyRequest())).ready
    assert (await stub.ModelReady(ModelReadyRequest(name="colours", version="1"))).ready
    about = await stub.ServerMetadata(ServerMetadataRequest())
    assert about.name == "fuseline"
    assert re.fullmatch(r"\d+\.\d+\.\d+", about.version)
    assert set(about.extensions) - {"cuda_shared_memory"} == {
        "classification",
        "logging",
        "model_configuration",
        "model_repository",
        "parameters",
        "schedule_policy",
        "statistics",
        "system_shared_memory",
    }
    index = await stub.RepositoryIndex(RepositoryIndexRequest())
    assert [(model.name, model.version, model.state) for model in index.models] == [("colours", "1", "READY")]

    metadata = await stub.ModelMetadata(ModelMetadataRequest(name="colours"))
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("colours", ["1"], "onnxruntime_onnx")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("image", "UINT8", [-1, 8, 8, 3])]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [("logits", "FP32", [-1, 4])]

    config = (await stub.ModelConfig(ModelConfigRequest(name="colours"))).config
    assert (config.name, config.backend, config.max_batch_size) == ("colours", "onnxruntime", 5)
    assert [(t.name, t.data_type, t.format, list(t.dims)) for t in config.input] == [
        ("image", TYPE_UINT8, ModelInput.FORMAT_NHWC, [8, 8, 3])
    ]
    assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [("logits", TYPE_FP32, [4])]
    assert list(config.dynamic_batching.preferred_batch_size) == [1, 2, 3, 4, 6]
    assert config.dynamic_batching.max_queue_delay_microseconds == 1500


async def test_the_config_tells_what_tools_of_triton_ask_of_it(start_server: StartServer) -> None:
    served = await start_server(lanes=2, max_queue_ms=250.5, max_queue_rows=300)
    config = (await stub_of(served).ModelConfig(ModelConfigRequest(name="colours"))).config
    assert config.version_policy.latest.num_versions == 1
    (group,) = config.instance_group
    assert (group.name, group.count, group.kind, list(group.gpus)) == ("colours_0", 2, ModelInstanceGroup.KIND_CPU, [])
    assert config.output[0].label_filename == "manifest.json"
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.timeout_action, policy.default_timeout_microseconds) == (ModelQueuePolicy.REJECT, 250_500)
    assert (policy.allow_timeout_override, policy.max_queue_size) == (True, 300)
    assert config.HasField("model_transaction_policy")
    assert not config.model_transaction_policy.decoupled


@pytest.mark.parametrize(
    ("layout", "dtype", "told"),
    [
        ("NHWC", "uint8", (ModelInput.FORMAT_NHWC, TYPE_UINT8)),
        ("NCHW", "float32", (ModelInput.FORMAT_NCHW, TYPE_FP32)),
        ("NCHW", "float16", (ModelInput.FORMAT_NCHW, TYPE_FP16)),
    ],
)
async def test_the_config_tells_the_layout_and_the_type_of_the_manifest(
    start_server: StartServer, layout: str, dtype: str, told: tuple[int, int]
) -> None:
    (model,) = (await start_server()).server.repository
    spec = model.manifest.input.model_copy(update={"layout": layout, "dtype": dtype, "name": "pixels"})
    model.manifest = model.manifest.model_copy(update={"input": spec, "output_name": "scores"})
    config = config_of(model, ["1"], settings())
    assert (config.input[0].format, config.input[0].data_type) == told
    assert (config.input[0].name, config.output[0].name) == ("pixels", "scores")


@pytest.mark.parametrize(("device", "kind", "gpus"), [("CPU", "KIND_CPU", []), ("NVIDIA H100", "KIND_GPU", [0])])
async def test_the_config_names_the_device_of_the_instances(
    start_server: StartServer, device: str, kind: str, gpus: list[int]
) -> None:
    (model,) = (await start_server()).server.repository
    model.backend = BackendFacts.model_validate(model.backend).model_copy(update={"device": device})
    (group,) = config_of(model, ["1"], settings()).instance_group
    assert (ModelInstanceGroup.Kind.Name(group.kind), list(group.gpus)) == (kind, gpus)


async def test_statistics_count_requests_rows_batches_and_their_time(start_server: StartServer) -> None:
    served = await start_server(max_batch=4)
    stub = stub_of(served)
    for named in (ModelStatisticsRequest(name="colours"), ModelStatisticsRequest()):
        (nothing,) = (await stub.ModelStatistics(named)).model_stats
        assert (nothing.name, nothing.version, nothing.inference_count, nothing.last_inference) == (
            "colours",
            "1",
            0,
            0,
        )
    first = await served.busy_with(stub.ModelInfer(infer_request(noise(1))))
    both = [stub.ModelInfer(infer_request(noise(rows))) for rows in (1, 2)]
    gathered = asyncio.gather(first, *both)
    await served.until(lambda: served.queued_rows == 3)
    served.backend.release()
    await gathered
    await refusal(stub.ModelInfer(ModelInferRequest()))

    def fail(_: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise RuntimeError("broken")

    served.backend.replacement = fail
    await refusal(stub.ModelInfer(infer_request(noise(2))))
    served.backend.replacement = None
    await served.stub.Classify(raw_request(noise(1)))
    (counted,) = (await stub.ModelStatistics(ModelStatisticsRequest(name="colours"))).model_stats
    assert (counted.inference_count, counted.execution_count) == (5, 3)
    assert counted.last_inference > 1_700_000_000_000
    of_requests = counted.inference_stats
    assert (of_requests.success.count, of_requests.fail.count) == (4, 2)
    # perf_analyzer ends where the three compute counts differ.
    for part in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(of_requests, part).count == 4
    assert of_requests.success.ns >= of_requests.queue.ns + of_requests.compute_infer.ns > 0
    assert of_requests.fail.ns > 0
    sizes = {batch.batch_size: batch.compute_infer for batch in counted.batch_stats}
    assert {rows: compute.count for rows, compute in sizes.items()} == {1: 2, 3: 1}
    # Two requests shared the batch of 3 rows.
    assert abs(of_requests.compute_infer.ns - sizes[1].ns - 2 * sizes[3].ns) <= 4


async def test_a_full_queue_refuses_at_once_and_loses_nothing(start_server: StartServer) -> None:
    served = await start_server(max_queue_rows=4, max_images_per_request=4)
    stub = stub_of(served)
    admitted = [await served.busy_with(stub.ModelInfer(infer_request(noise(1))))]
    admitted.append(stub.ModelInfer(infer_request(noise(3))))
    await served.until(lambda: served.queued_rows == 3)
    code, _ = await refusal(stub.ModelInfer(infer_request(noise(2))))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    served.backend.release()
    assert [len(logits_of(await call)) for call in admitted] == [1, 3]


async def test_a_passed_deadline_and_a_cancelled_call_leave_the_queue(start_server: StartServer) -> None:
    served = await start_server()
    stub = stub_of(served)
    first = await served.busy_with(stub.ModelInfer(infer_request(noise(1))))
    code, _ = await refusal(stub.ModelInfer(infer_request(noise(2)), timeout=0.2))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    await served.until(lambda: served.queued_rows == 0)
    cancelled = stub.ModelInfer(infer_request(noise(3)))
    await served.until(lambda: served.queued_rows == 3)
    cancelled.cancel()
    await served.until(lambda: served.queued_rows == 0)
    served.backend.release()
    assert logits_of(await first).shape == (1, 4)
    assert served.backend.calls == [1]


async def test_a_failing_backend_fails_its_batch_only_and_tells_an_id_that_the_log_has(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    served = await start_server()
    replacements = (lambda pixels: 1 / 0, lambda pixels: np.full((len(pixels), 4), np.nan, np.float32))
    for replacement in replacements:
        served.backend.replacement = replacement
        with caplog.at_level(logging.ERROR):
            code, details = await refusal(stub_of(served).ModelInfer(infer_request(noise(1))))
        assert code is grpc.StatusCode.INTERNAL
        error_id = re.search(r"error ([0-9a-f]{12})", details)
        assert error_id is not None
        assert error_id[1] in caplog.records[-1].message
    served.backend.replacement = None
    assert logits_of(await stub_of(served).ModelInfer(infer_request(noise(1)))).shape == (1, 4)


async def test_drain_answers_what_was_admitted_and_refuses_the_rest(start_server: StartServer) -> None:
    served = await start_server()
    stub = stub_of(served)
    running = await served.busy_with(stub.ModelInfer(infer_request(noise(1))))
    queued = stub.ModelInfer(infer_request(noise(2)))
    await served.until(lambda: served.queued_rows == 2)
    watch = HealthStub(served.channel).Watch(HealthCheckRequest(service=SERVICE))
    assert (await watch.read()).status == HealthCheckResponse.SERVING
    draining = asyncio.create_task(served.server.drain())
    assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
    watch.cancel()
    code, details = await refusal(stub.ModelInfer(infer_request(noise(1))))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in details
    assert (await stub.ServerLive(ServerLiveRequest())).live
    assert not (await stub.ServerReady(ServerReadyRequest())).ready
    assert not (await stub.ModelReady(ModelReadyRequest(name="colours"))).ready
    index = await stub.RepositoryIndex(RepositoryIndexRequest())
    assert [model.state for model in index.models] == ["UNAVAILABLE"]
    served.backend.release()
    assert [len(logits_of(await call)) for call in (running, queued)] == [1, 2]
    await draining
    assert served.server.answers() == "2 OK, 1 UNAVAILABLE"


async def test_reflection_lists_it_and_what_it_does_not_serve_is_unimplemented(start_server: StartServer) -> None:
    served = await start_server()

    async def list_services() -> AsyncIterator[ServerReflectionRequest]:
        yield ServerReflectionRequest(list_services="")

    async for answer in ServerReflectionStub(served.channel).ServerReflectionInfo(list_services()):
        assert SERVICE in {service.name for service in answer.list_services_response.service}
    explain = served.channel.unary_unary(f"/{SERVICE}/ModelExplain")
    assert (await refusal(explain(b"")))[0] is grpc.StatusCode.UNIMPLEMENTED
