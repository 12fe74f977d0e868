"""What clients get from a replica by Ray's proxies is what they get from `fuseline serve`."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from numpy.typing import NDArray

from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2 import ModelInferRequest, ModelReadyRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.client.client import Client
from fuseline.serve.errors import RequestError, UnknownModelError
from fuseline.serve.services.statuses import ERROR_METADATA_KEY, retry_after_from_metadata
from tests.deploy.ray.load import TOLERANCE, Expected
from tests.serve.services.classify_requests import logits_of, raw_request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def expected(tiny: Path) -> Expected:
    return Expected.of(tiny)


@pytest.fixture(scope="module")
def served(cluster: Any, tiny: Path) -> Iterator[Any]:
    """The cluster, with one replica of the tiny model."""
    cluster.run(tiny, name="tiny", max_images_per_request=64)
    yield cluster
    cluster.delete()


@pytest.fixture(scope="module")
def channel(served: Any) -> Iterator[grpc.Channel]:
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(served.grpc_address, options=options) as channel:
        yield channel


def infer_request(pixels: NDArray[np.uint8], model: str = "tiny") -> ModelInferRequest:
    tensor = ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=pixels.shape)
    return ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[pixels.tobytes()])


def logits_in(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f4").reshape(-1, 10)


def test_both_protocols_over_grpc_give_the_backends_logits(channel: grpc.Channel, expected: Expected) -> None:
    answer = ClassifierStub(channel).Classify(raw_request(expected.pixels, return_logits=True), timeout=30)
    np.testing.assert_allclose(logits_of(answer), expected.logits, atol=TOLERANCE)
    inferred = GRPCInferenceServiceStub(channel).ModelInfer(infer_request(expected.pixels), timeout=30)
    np.testing.assert_allclose(logits_in(inferred.raw_output_contents[0]), expected.logits, atol=TOLERANCE)


def test_http_gives_the_backends_logits(served: Any, expected: Expected) -> None:
    image = {"name": "image", "shape": expected.pixels.shape, "datatype": "UINT8", "data": expected.pixels.tolist()}
    body = json.dumps({"inputs": [image]}).encode()
    assert len(body) > 2**16  # it comes to the replica in parts
    url = f"{served.http_address}/model/v2/models/tiny/infer"
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as answer:
        (output,) = json.loads(answer.read())["outputs"]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), expected.logits, atol=TOLERANCE)


def test_streams_of_both_protocols_are_answered_whole(channel: grpc.Channel, expected: Expected) -> None:
    requests = [raw_request(expected.pixels[n : n + 1], id=f"{n}", return_logits=True) for n in range(8)]
    requests[5].model = "nope"
    answers = {answer.id: answer for answer in ClassifierStub(channel).ClassifyStream(iter(requests), timeout=30)}
    assert sorted(answers) == [f"{n}" for n in range(8)]
    assert answers.pop("5").error.code == grpc.StatusCode.NOT_FOUND.value[0]
    for number, answer in answers.items():
        np.testing.assert_allclose(logits_of(answer)[0], expected.logits[int(number)], atol=TOLERANCE)
    stream = GRPCInferenceServiceStub(channel).ModelStreamInfer(
        iter([infer_request(expected.pixels[n : n + 1]) for n in range(4)]), timeout=30
    )
    inferred = [logits_in(answer.infer_response.raw_output_contents[0])[0] for answer in stream]
    np.testing.assert_allclose(inferred, expected.logits[:4], atol=TOLERANCE)


def test_a_stream_that_ends_by_an_error_has_its_status(channel: grpc.Channel) -> None:
    stream = channel.stream_stream("/fuseline.v1.Classifier/ClassifyStream")(iter([b"\xff\xff"]), timeout=30)
    with pytest.raises(grpc.RpcError) as raised:
        list(stream)
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("what came is no message of this method")


def test_errors_are_those_of_fuseline_alone(served: Any, channel: grpc.Channel, expected: Expected) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        ClassifierStub(channel).Classify(
            raw_request(expected.pixels, model="nope"), timeout=30, metadata=[("x-request-id", "mine")]
        )
    error: Any = raised.value
    assert (error.code(), error.details()) == (
        grpc.StatusCode.NOT_FOUND,
        "there is no model 'nope' here; served: tiny",
    )
    told = dict(error.trailing_metadata())
    assert (told[ERROR_METADATA_KEY], told["x-request-id"]) == ("UnknownModelError", "mine")
    with Client(served.grpc_address) as client:
        with pytest.raises(UnknownModelError):
            client.classify(expected.pixels[0], model="nope")
        with pytest.raises(RequestError, match="raw pixels came as"):
            client.classify(expected.pixels[0][:3])
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{served.http_address}/model/v2/models/nope", timeout=30)
    with refused.value as answer:
        assert (answer.code, answer.headers["fuseline-error"]) == (404, "UnknownModelError")


def test_bytes_that_are_no_message_are_the_clients_error(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary("/fuseline.v1.Classifier/Classify")(b"\xff\xff", timeout=30)
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_of_more_than_4_mib_is_answered(channel: grpc.Channel, expected: Expected) -> None:
    large = np.repeat(expected.pixels, 8, axis=0)
    request = raw_request(large)
    request.id = "x" * (5 * 2**20)
    answer = ClassifierStub(channel).Classify(request, timeout=30)
    assert len(answer.results) == 64


def test_health_is_answered_for_the_model_and_for_the_proxy(channel: grpc.Channel) -> None:
    status = HealthStub(channel).Check(HealthCheckRequest(), timeout=30).status
    assert status == HealthCheckResponse.SERVING
    assert GRPCInferenceServiceStub(channel).ModelReady(ModelReadyRequest(name="tiny"), timeout=30).ready
    assert channel.unary_unary("/ray.serve.RayServeAPIService/Healthz")(b"", timeout=30) == b"\n\x07success"


def test_of_several_models_each_is_an_application_of_its_own(
    served: Any, channel: grpc.Channel, tiny: Path, expected: Expected
) -> None:
    stub, request = ClassifierStub(channel), raw_request(expected.pixels[:1])
    assert stub.Classify(request, timeout=30).model == "tiny"  # one alone needs no name
    served.run(tiny, app="second", name="other")
    try:
        for app, model in (("model", "tiny"), ("second", "other")):
            assert stub.Classify(request, timeout=30, metadata=[("application", app)]).model == model
            with urllib.request.urlopen(f"{served.http_address}/{app}/v2/models/{model}", timeout=30) as answer:
                assert json.loads(answer.read())["name"] == model
        for metadata, details in (
            ([("application", "third")], "Application 'third' not found."),
            ([], "Application metadata not set."),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                stub.Classify(request, timeout=30, metadata=metadata)
            error: Any = raised.value
            assert error.code() is grpc.StatusCode.NOT_FOUND
            assert error.details().startswith(details)
    finally:
        served.delete("second")


def test_what_is_too_much_is_refused_by_fuseline_and_by_ray(cluster: Any, tiny: Path, expected: Expected) -> None:
    cluster.run(
        tiny, app="strict", max_requests_per_client=1, max_delay_ms=500, max_ongoing_requests=4, max_queued_requests=1
    )
    try:
        with grpc.insecure_channel(cluster.grpc_address) as channel:
            call, request = ClassifierStub(channel).Classify, raw_request(expected.pixels[:1])
            asked = [call.future(request, timeout=30, metadata=[("application", "strict")]) for _ in range(20)]
            codes = [each.code() for each in asked]
            refused = [each for each in asked if each.code() is not grpc.StatusCode.OK]
        assert grpc.StatusCode.OK in codes
        assert {each.code() for each in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        by_us = [each for each in refused if ERROR_METADATA_KEY in dict(each.trailing_metadata())]
        assert by_us
        assert all(retry_after_from_metadata(each.trailing_metadata()) == 0.1 for each in by_us)
        assert len(by_us) < len(refused)  # the rest had no place in the proxy's queue
        with ThreadPoolExecutor(20) as pool:
            answers = list(
                pool.map(lambda _: ask_http(f"{cluster.http_address}/strict/v2/models/tiny32/infer"), range(20))
            )
        assert {status for status, _ in answers} <= {400, 429}  # an empty body is no request
        told = {retry_after for status, retry_after in answers if status == 429}
        assert told <= {"1"}
    finally:
        cluster.delete("strict")


def ask_http(url: str) -> tuple[int, str | None]:
    """Return the status of an answer, and its Retry-After."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, b"{}"), timeout=30) as answer:
            return answer.status, None
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["retry-after"]
