"""Classification of files over HTTP, as people type it."""

import json
import re
from typing import Any

import numpy as np
import pytest

from fuseline.protos.classify_pb2 import ClassifyRequest, ClassifyResponse, GetModelRequest, GetModelResponse, Image
from fuseline.serve.errors import DeadlineError
from fuseline.serve.services.call_context import CallContext
from fuseline.serve.services.classify import ClassifyService
from fuseline.serve.services.statuses import Status, status_from_error
from tests.fakes.colours import LABELS, encoded, expected_logits, noise, plain
from tests.serve.bad_images import bad_images
from tests.serve.conftest import Served, StartServer
from tests.serve.http.calls import Answer, call, get

CURLS_TYPE = {"Content-Type": "application/x-www-form-urlencoded"}
BOUNDARY = "BOUNDARY"
FORM_TYPE = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


async def classify(
    served: Served, body: bytes, query: str = "", path: str = "/v1/classify", headers: Any = CURLS_TYPE
) -> Answer:
    return await call(served, "POST", f"{path}?{query}" if query else path, body, headers)


def part(content: bytes, name: str = "image", filename: str | None = None) -> bytes:
    of_file = "" if filename is None else f'; filename="{filename}"'
    return (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{of_file}\r\n\r\n'.encode() + content + b"\r\n"
    )


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def file(colour: str, filename: str | None = None) -> bytes:
    return part(encoded(plain(colour, 20, 30)), filename=filename or f"{colour}.png")


def top_labels(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.body
    return [result["predictions"][0]["label"] for result in answer.json["results"]]


async def test_the_bytes_of_an_image_are_classified_as_over_grpc(start_http: StartServer) -> None:
    served = await start_http()
    image = encoded(plain("green", 20, 30), "JPEG")
    answer = (await classify(served, image, "top_k=3&return_logits=true&id=mine")).json
    request = ClassifyRequest(images=[Image(encoded=image)], top_k=3, return_logits=True)
    expected = await served.stub.Classify(request)
    assert (answer["model"], answer["model_version"], answer["id"]) == ("colours", "1", "mine")
    (result,) = answer["results"]
    assert "filename" not in result
    assert [(p["index"], p["label"], np.float32(p["probability"])) for p in result["predictions"]] == [
        (p.index, p.label, np.float32(p.probability)) for p in expected.results[0].predictions
    ]
    assert np.array(result["logits"], np.float32).tobytes() == expected.results[0].logits
    assert set(answer["timing"]) == {"preprocess_ms", "queue_ms", "compute_ms", "batch_rows"}
    assert answer["timing"]["preprocess_ms"] > 0


async def test_a_probability_has_the_digits_of_fp32(start_http: StartServer) -> None:
    answer = await classify(await start_http(), encoded(noise(1)[0]), "top_k=4")
    for prediction in answer.json["results"][0]["predictions"]:
        assert str(prediction["probability"]) == str(np.float32(prediction["probability"]))


async def test_without_parameters_the_best_class_of_the_only_model_comes(start_http: StartServer) -> None:
    served = await start_http()
    for path in ("/v1/classify", "/v1/models/colours/classify"):
        answer = await classify(served, encoded(plain("blue")), path=path, headers={})
        assert top_labels(answer) == ["blue"]
        assert len(answer.json["results"][0]["predictions"]) == 1
    assert top_labels(await classify(served, encoded(plain("blue")), "model=colours")) == ["blue"]


async def test_files_of_a_form_are_answered_in_order_by_their_names(start_http: StartServer) -> None:
    served = await start_http()
    colours = [*LABELS, *reversed(LABELS)]
    body = form(*(file(colour, f"{number} {colour} ä.png") for number, colour in enumerate(colours)))
    answer = await classify(served, body, "top_k=2", headers=FORM_TYPE)
    assert top_labels(answer) == colours
    assert [result["filename"] for result in answer.json["results"]] == [
        f"{number} {colour} ä.png" for number, colour in enumerate(colours)
    ]
    assert answer.json["timing"]["batch_rows"] >= 1


async def test_pixels_are_classified_as_they_enter_the_network(start_http: StartServer) -> None:
    served = await start_http()
    pixels = np.full((8, 8, 3), (0, 0, 255), np.uint8).tobytes()
    (result,) = (await classify(served, pixels, "raw=1&top_k=1", headers=CURLS_TYPE)).json["results"]
    assert result["predictions"][0]["label"] == "blue"
    files = form(part(pixels, filename="a.rgb"), part(pixels, filename="b.rgb"), part(b"true", "raw"))
    answer = await classify(served, files, headers=FORM_TYPE)
    assert [result["filename"] for result in answer.json["results"]] == ["a.rgb", "b.rgb"]
    picture = await classify(served, encoded(plain("blue"), "PNG"), "raw=true", headers=CURLS_TYPE)
    assert picture.status == 400
    assert "192" in picture.error, "the length that pixels have"


async def test_fields_of_a_form_are_parameters_too(start_http: StartServer) -> None:
    served = await start_http()
    answer = await classify(served, form(part(b"2", "top_k"), file("red"), part(b"mine", "id")), headers=FORM_TYPE)
    assert len(answer.json["results"][0]["predictions"]) == 2
    assert answer.json["id"] == "mine"
    twice = await classify(served, form(part(b"2", "top_k"), file("red")), "top_k=2", headers=FORM_TYPE)
    assert "'top_k' is given twice" in twice.error


async def test_a_large_file_of_a_form_needs_no_file_system(
    start_http: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await start_http()

    def no_file(*_: object, **__: object) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", no_file)
    picture = np.random.default_rng(0).integers(0, 60, (900, 900, 3), dtype=np.uint8)
    picture[..., 2] = 255
    body = form(part(encoded(picture), filename="large.png"))
    assert len(body) > 2**20
    assert top_labels(await classify(served, body, headers=FORM_TYPE)) == ["blue"]


async def test_what_is_wrong_with_a_request_is_told(start_http: StartServer) -> None:
    served = await start_http(max_images_per_request=4)
    image = encoded(plain("red"))
    known = "known: model, version, top_k, timeout_ms, priority, return_logits, raw, id"
    for body, query, headers, reason in (
        (b"", "", CURLS_TYPE, "body is empty.*--data-binary @cat.jpg"),
        (b"GIF89a", "", {}, "image"),
        (image, "topk=3", CURLS_TYPE, f"'topk' is not known here; {known}"),
        (image, "top_k", CURLS_TYPE, "'top_k' is ''; expected a whole number"),
        (image, "top_k=0", CURLS_TYPE, "top_k is 0"),
        (image, "top_k=5", CURLS_TYPE, "top_k is 5; colours has 4 classes"),
        (image, "top_k=-1", CURLS_TYPE, "expected a whole number"),
        (image, "top_k=1_0", CURLS_TYPE, "expected a whole number"),
        (image, "top_k=%D9%A3", CURLS_TYPE, "expected a whole number"),
        (image, "top_k=4294967296", CURLS_TYPE, "whole number below 2"),
        (image, "top_k=" + "9" * 5000, CURLS_TYPE, "whole number below 2"),
        (image, "top_k=1&top_k=2", CURLS_TYPE, "'top_k' is given twice"),
        (image, "timeout_ms=1.5", CURLS_TYPE, "'timeout_ms' is '1.5'"),
        (image, "return_logits=yes", CURLS_TYPE, "expected true or false"),
        (image, "raw=", CURLS_TYPE, "'raw' is ''; expected true or false"),
        (bytes(191), "raw=true", CURLS_TYPE, "191 raw bytes"),
        (image, "model=%FF", CURLS_TYPE, "query can't be read"),
        (image, "&".join(f"a{number}=1" for number in range(100)), CURLS_TYPE, "query can't be read"),
        (form(part(b"1", "top_k")), "", FORM_TYPE, "form has no file"),
        (form(), "", FORM_TYPE, "form has no file"),
        (form(*[file("red")] * 5), "", FORM_TYPE, "Too many files. Maximum number of files is 4"),
        (form(*[part(b"1", "a")] * 17), "", FORM_TYPE, "Too many fields"),
        (form(part(bytes(5000), "id"), file("red")), "", FORM_TYPE, "Part exceeded maximum size"),
        (form(part(b"1", "size"), file("red")), "", FORM_TYPE, f"'size' is not known here; {known}"),
        (b"no form", "", FORM_TYPE, "form can't be read"),
        (image, "", {"Content-Type": "multipart/form-data"}, "form can't be read: Missing boundary"),
        (form(part(b"GIF89a", filename="a.gif")), "", FORM_TYPE, "image"),
    ):
        answer = await classify(served, body, query, headers=headers)
        assert answer.status == 400, (query, answer.body)
        assert re.search(reason, answer.error), answer.error
        assert len(answer.error) < 1000
    named = await classify(served, image, "model=colours", path="/v1/models/colours/classify")
    assert (
        "'model' is not known here; known: version, top_k, timeout_ms, priority, return_logits, raw, id" in named.error
    )
    assert (await classify(served, image, path="/v1/models/cats/classify")).status == 404
    assert (await classify(served, image, "model=cats")).headers["fuseline-error"] == "UnknownModelError"
    assert served.backend.calls == []
    assert top_labels(await classify(served, image)) == ["red"]


async def test_a_damaged_image_is_refused_with_the_reason_and_in_a_form_with_its_place(
    start_http: StartServer,
) -> None:
    served = await start_http()
    for data, reason in bad_images().values():
        if data:
            answer = await classify(served, data)
            assert (answer.status, answer.headers["fuseline-error"]) == (400, "ImageError")
            assert re.search(reason, answer.error)
            assert "curl needs --data-binary" in answer.error
    answer = await classify(served, form(file("red"), part(b"GIF89a", filename="a.gif")), headers=FORM_TYPE)
    assert "image 2 of 2" in answer.error


async def test_a_timeout_reaches_the_service_and_its_error_comes_back(
    start_http: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await start_http()
    timeouts_ms: list[int] = []

    async def too_late(_: ClassifyService, _method: str, request: ClassifyRequest, _call: CallContext) -> Status:
        timeouts_ms.append(request.timeout_ms)
        return status_from_error(DeadlineError("too late"))

    monkeypatch.setattr(ClassifyService, "classify", too_late)
    answer = await classify(served, encoded(plain("red")), "timeout_ms=1500")
    assert (answer.status, answer.headers["fuseline-error"], answer.error) == (504, "DeadlineError", "too late")
    assert timeouts_ms == [1500]


async def test_models_are_listed_and_described(start_http: StartServer) -> None:
    served = await start_http()
    assert (await get(served, "/v1/models")).json == {"models": ["colours"]}
    described = (await get(served, "/v1/models/colours")).json
    expected = await served.stub.GetModel(GetModelRequest(model="colours"))
    assert (described["labels"], described["height"], described["task"]) == (list(LABELS), 8, "single-label")
    assert described["max_message_bytes"] == expected.max_message_bytes
    assert described["lanes"]["lanes"] == 1
    assert (await get(served, "/v1/models/cats")).status == 404


async def test_a_program_may_send_the_messages_of_grpc(start_http: StartServer) -> None:
    served = await start_http()
    protobuf = {"Content-Type": "application/x-protobuf", "Accept": "application/x-protobuf"}
    pixels = noise(2)
    request = ClassifyRequest(images=[Image(raw=image.tobytes()) for image in pixels], return_logits=True, id="7")
    answer = await classify(served, request.SerializeToString(), headers=protobuf)
    assert answer.headers["content-type"] == "application/x-protobuf"
    response = ClassifyResponse.FromString(answer.body)
    logits = np.array([np.frombuffer(result.logits, "<f4") for result in response.results])
    np.testing.assert_allclose(logits, expected_logits(pixels), atol=1e-5)
    assert response.id == "7"
    described = await call(served, "GET", "/v1/models/colours", b"", protobuf)
    assert GetModelResponse.FromString(described.body) == await served.stub.GetModel(GetModelRequest())
    refused = await classify(served, b"\xff", headers=protobuf)
    assert "no ClassifyRequest" in refused.error
    assert json.loads((await classify(served, b"", headers=protobuf)).body)["error"].startswith(
        "the request has no image"
    )
