"""Which output a request of the Open Inference Protocol gets, and the parameters of requests and responses."""

import re

import grpc
import numpy as np
import pytest

from fuseline.protos.open_inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.fakes.colours import LABELS, encoded, expected_logits, noise, plain
from tests.serve.conftest import StartServer
from tests.serve.failures import refusal
from tests.serve.services.open_inference_requests import infer_request, logits_of
from tests.serve.services.test_open_inference_pictures import bytes_request, with_lengths


def asking_for(pixels: np.ndarray, **parameters: InferParameter) -> ModelInferRequest:
    output = ModelInferRequest.InferRequestedOutputTensor(name="logits", parameters=parameters)
    return infer_request(pixels, outputs=[output])


def classes(count: int) -> InferParameter:
    return InferParameter(int64_param=count)


def elements(response: ModelInferResponse) -> list[str]:
    """The elements of the one output, which is BYTES."""
    (output,), (raw,) = response.outputs, response.raw_output_contents
    assert (output.name, output.datatype) == ("logits", "BYTES")
    found = []
    while raw:
        end = 4 + int.from_bytes(raw[:4], "little")
        found.append(raw[4:end].decode())
        raw = raw[end:]
    assert len(found) == np.prod(output.shape)
    return found


async def test_classification_gives_the_classes_of_largest_logits_as_triton_writes_them(
    start_server: StartServer,
) -> None:
    stub = GRPCInferenceServiceStub((await start_server()).channel)
    pixels = noise(3)
    logits = logits_of(await stub.ModelInfer(infer_request(pixels)))
    response = await stub.ModelInfer(asking_for(pixels, classification=classes(2)))
    assert list(response.outputs[0].shape) == [3, 2]
    expected = [
        f"{row[index]:f}:{index}:{LABELS[index]}" for row in logits for index in np.argsort(-row, kind="stable")[:2]
    ]
    assert elements(response) == expected


async def test_classification_gives_at_most_all_classes_and_takes_pictures(start_server: StartServer) -> None:
    stub = GRPCInferenceServiceStub((await start_server()).channel)
    request = bytes_request(1, raw=with_lengths([encoded(plain("green"))]))
    request.outputs.add(name="logits").parameters["classification"].int64_param = 1000
    response = await stub.ModelInfer(request)
    assert list(response.outputs[0].shape) == [1, 4]
    assert [element.split(":")[2] for element in elements(response)] == ["green", "red", "blue", "dark"]


async def test_a_response_tells_where_its_time_went(start_server: StartServer) -> None:
    served = await start_server()
    stub = GRPCInferenceServiceStub(served.channel)
    parameters = (await stub.ModelInfer(infer_request(noise(3)))).parameters
    assert parameters["batch_rows"].int64_param == 3
    assert parameters["compute_ms"].double_param > 0
    assert parameters["queue_ms"].double_param >= 0
    assert parameters["preprocess_ms"].double_param == 0


TAKEN = {
    "unknown": InferParameter(string_param="anything"),
    "priority": InferParameter(uint64_param=2),
    "timeout": InferParameter(int64_param=-1),
    "sequence_id": InferParameter(string_param="mine"),
    "sequence_start": InferParameter(bool_param=True),
}


async def test_parameters_without_a_meaning_here_are_ignored(start_server: StartServer) -> None:
    stub = GRPCInferenceServiceStub((await start_server()).channel)
    request = infer_request(noise(1), parameters=TAKEN, outputs=[{"name": "logits", "parameters": TAKEN}])
    request.inputs[0].parameters["unknown"].double_param = 1.5
    np.testing.assert_allclose(logits_of(await stub.ModelInfer(request)), expected_logits(noise(1)), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameter", "reason"),
    [
        ("timeout", InferParameter(string_param="1 s"), "'timeout' came with '1 s' as string_param; int64_param"),
        ("timeout", InferParameter(uint64_param=1), "'timeout' came with 1 as uint64_param"),
        ("timeout", InferParameter(double_param=1.0), "'timeout' came with 1.0 as double_param"),
        ("timeout", InferParameter(), "'timeout' came with no value"),
        ("priority", InferParameter(bool_param=True), "'priority' came with True as bool_param"),
        ("priority", InferParameter(int64_param=-1), "'priority' is -1; 0 or more"),
        ("mine", InferParameter(), "'mine' came with no value"),
        ("mine", InferParameter(uint64_param=1), "'mine' came with 1 as uint64_param"),
        ("triton_final_response", InferParameter(bool_param=True), "begin with 'triton_' are reserved"),
        ("triton_" * 9999, InferParameter(bool_param=True), "reserved"),
        ("sequence_start", InferParameter(int64_param=1), "bool_param was expected"),
        ("triton_enable_empty_final_response", InferParameter(string_param="yes" * 999), "bool_param was expected"),
    ],
)
async def test_a_request_parameter_of_a_wrong_type_is_refused(
    start_server: StartServer, name: str, parameter: InferParameter, reason: str
) -> None:
    served = await start_server()
    request = infer_request(noise(1), parameters={name: parameter})
    code, details = await refusal(GRPCInferenceServiceStub(served.channel).ModelInfer(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(reason, details), details
    assert len(details) < 300
    assert served.backend.calls == []


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"classification": InferParameter(string_param="3")}, "'classification' of the output 'logits' came with '3'"),
        ({"classification": classes(-1)}, "'classification' of the output 'logits' is -1; 1 or more"),
        ({"classification": classes(0)}, "'classification' of the output 'logits' is 0; 1 or more"),
        ({"shared_memory_region": InferParameter(int64_param=3)}, "'shared_memory_region' of the output"),
        ({"shared_memory_region": InferParameter(string_param="r")}, "'shared_memory_byte_size' is missing"),
        ({"shared_memory_byte_size": classes(16)}, "without 'shared_memory_region'"),
        (
            {
                "shared_memory_region": InferParameter(string_param="r"),
                "shared_memory_byte_size": classes(16),
                "classification": classes(1),
            },
            "both 'classification' and 'shared_memory_region'",
        ),
    ],
)
async def test_an_output_parameter_that_is_wrong_is_refused(
    start_server: StartServer, parameters: dict[str, InferParameter], reason: str
) -> None:
    served = await start_server()
    code, details = await refusal(
        GRPCInferenceServiceStub(served.channel).ModelInfer(asking_for(noise(1), **parameters))
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert reason in details
    assert served.backend.calls == []


async def test_of_an_output_that_is_asked_for_twice_the_last_is_heeded(start_server: StartServer) -> None:
    request = asking_for(noise(1), classification=classes(2))
    request.outputs.add(name="logits")
    response = await GRPCInferenceServiceStub((await start_server()).channel).ModelInfer(request)
    assert logits_of(response).shape == (1, 4)
