"""Encoded pictures as BYTES over the Open Inference Protocol."""

import re
from collections.abc import Sequence

import grpc
import pytest

from fuseline.protos.classify_pb2 import ClassifyRequest, Image
from fuseline.protos.open_inference_pb2 import InferTensorContents, ModelInferRequest
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.fakes.colours import encoded, noise, plain
from tests.serve.conftest import StartServer
from tests.serve.failures import refusal
from tests.serve.services.open_inference_requests import infer_request, logits_of

PICTURES = [encoded(plain("green")), encoded(plain("blue", 16, 24), "JPEG"), encoded(noise(1)[0], "WEBP")]


def with_lengths(elements: Sequence[bytes]) -> bytes:
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def bytes_request(*shape: int, raw: bytes | None = None, typed: Sequence[bytes] = ()) -> ModelInferRequest:
    request = ModelInferRequest(
        inputs=[ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=shape)],
    )
    if raw is None:
        request.inputs[0].contents.CopyFrom(InferTensorContents(bytes_contents=typed))
    else:
        request.raw_input_contents.append(raw)
    return request


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
async def test_pictures_are_answered_as_classify_answers_them(
    start_server: StartServer, shape: tuple[int, ...]
) -> None:
    served = await start_server()
    stub = GRPCInferenceServiceStub(served.channel)
    classified = await served.stub.Classify(
        ClassifyRequest(images=[Image(encoded=data) for data in PICTURES], return_logits=True)
    )
    for request in (bytes_request(*shape, raw=with_lengths(PICTURES)), bytes_request(*shape, typed=PICTURES)):
        response = await stub.ModelInfer(request)
        assert [row.tobytes() for row in logits_of(response)] == [result.logits for result in classified.results]
        assert response.parameters["preprocess_ms"].double_param > 0


LIES = {
    "a length beyond the end": ((1,), (100).to_bytes(4, "little") + bytes(99), "should have 100 bytes, of which 99"),
    "a length of 4 GiB": ((1,), b"\xff" * 4 + PICTURES[0], "should have 4294967295 bytes"),
    "half a length": ((1,), with_lengths(PICTURES[:1]) + b"\1\0", "element 2.*more than the 1|element 2"),
    "fewer than the shape": ((3,), with_lengths(PICTURES[:2]), r"2 elements; shape \[3\] has 3"),
    "more than the shape": ((2,), with_lengths(PICTURES), "more than the 2 elements"),
    "nothing": ((1,), b"", "0 elements"),
    "no image": ((0,), b"", r"shape \[0\], expected \[images\]"),
    "too many images": ((9,), with_lengths(PICTURES * 3), "9 images, at most 8"),
    "a shape of pixels": ((1, 8, 8, 3), with_lengths(PICTURES[:1]), r"expected \[images\] or \[images, 1\]"),
    "two in a row": ((1, 2), with_lengths(PICTURES[:2]), r"expected \[images\] or \[images, 1\]"),
    "an element without a byte": ((1,), bytes(4), r"nothing \(0 bytes\)"),
    "no picture": ((2,), with_lengths([PICTURES[0], b"GIF89a...."]), "image 2 of 2: a GIF"),
}


async def test_elements_that_are_not_what_they_say_are_refused_and_never_reach_a_batch(
    start_server: StartServer,
) -> None:
    served = await start_server(max_images_per_request=8)
    stub = GRPCInferenceServiceStub(served.channel)
    for name, (shape, raw, reason) in LIES.items():
        code, details = await refusal(stub.ModelInfer(bytes_request(*shape, raw=raw)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT, f"{name}: {details}"
        assert re.search(reason, details), f"{name}: {details}"
    code, details = await refusal(stub.ModelInfer(bytes_request(2, typed=PICTURES)))
    assert (code, "3 elements" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    both = bytes_request(1, typed=PICTURES[:1])
    both.raw_input_contents.append(with_lengths(PICTURES[:1]))
    assert "both contents and raw_input_contents" in (await refusal(stub.ModelInfer(both)))[1]
    assert served.backend.calls == []
    assert logits_of(await stub.ModelInfer(infer_request(noise(1)))).shape == (1, 4)
