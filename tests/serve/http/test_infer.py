"""The Open Inference Protocol's inference over HTTP, against a server with a tiny real model."""

import asyncio
import gzip
import json
import re
import zlib
from typing import Any

import numpy as np
import pytest

from tests.fakes.colours import expected_logits, noise
from tests.serve.conftest import Served, StartServer
from tests.serve.http.calls import Answer, binary_body, call, get, json_tensor, logits_of, post_json
from tests.serve.services.classify_requests import raw_request

INFER = "/v2/models/colours/infer"


async def infer_binary(served: Served, pixels: Any, **members: object) -> Answer:
    return await call(served, "POST", INFER, *binary_body(pixels, **members))


async def test_logits_are_those_of_grpc_bit_for_bit_in_every_form(start_http: StartServer) -> None:
    served = await start_http(max_batch=4)
    pixels = noise(7)
    classified = await served.stub.Classify(raw_request(pixels, return_logits=True))
    expected = [result.logits for result in classified.results]
    tensor = json_tensor(pixels)
    answers = {
        "flat JSON": await post_json(served, INFER, {"inputs": [tensor]}),
        "nested JSON": await post_json(served, INFER, {"inputs": [tensor | {"data": pixels.tolist()}]}),
        "JSON in, binary out": await post_json(
            served, INFER, {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        ),
        "binary in, JSON out": await infer_binary(served, pixels),
        "binary": await infer_binary(served, pixels, parameters={"binary_data_output": True}),
        "a version": await post_json(served, "/v2/models/colours/versions/1/infer", {"inputs": [tensor]}),
        "raw": await call(served, "POST", INFER, pixels.tobytes(), {"Inference-Header-Content-Length": "0"}),
    }
    for form, answer in answers.items():
        assert [row.tobytes() for row in logits_of(answer)] == expected, form
    is_binary = {form for form, answer in answers.items() if answer.headers["content-type"] != "application/json"}
    assert is_binary == {"JSON in, binary out", "binary", "raw"}


async def test_an_output_in_json_has_the_digits_of_fp32_and_no_more(start_http: StartServer) -> None:
    answer = await infer_binary(await start_http(), noise(1))
    digits = re.search(rb'"data":\[(.*?)\]', answer.body).group(1).decode().split(",")  # type: ignore[union-attr]
    assert digits == [str(logit) for logit in logits_of(answer).ravel()]
    assert max(map(len, digits)) <= 13


async def test_the_id_comes_back_and_the_outputs_own_wish_overrides_the_requests(start_http: StartServer) -> None:
    served = await start_http()
    wish = [{"name": "logits", "parameters": {"binary_data": False}}]
    # JSON writes this character as its two halves.
    answer = await infer_binary(
        served,
        noise(1),
        id="\U0001f5bc",
        outputs=wish,
        parameters={"binary_data_output": True, "priority": 1, "mine": 0.5},
    )
    its = answer.json
    assert (its["id"], its["model_name"], its["model_version"]) == ("\U0001f5bc", "colours", "1")
    np.testing.assert_allclose(logits_of(answer), expected_logits(noise(1)), atol=1e-5)
    answer = await infer_binary(served, noise(1), outputs=[{"name": "logits", "parameters": {"binary_data": True}}])
    assert answer.headers["content-type"] == "application/octet-stream"


async def test_requests_over_http_and_grpc_share_a_batch(start_http: StartServer) -> None:
    served = await start_http(max_batch=8)
    first = await served.busy_with(asyncio.create_task(infer_binary(served, noise(1))))
    waiting = [asyncio.create_task(infer_binary(served, noise(2, seed))) for seed in (1, 2)]
    classify = served.stub.Classify(raw_request(noise(1, 3)))
    gathered = asyncio.gather(first, *waiting, classify)
    await served.until(lambda: served.queued_rows == 5)
    served.backend.release()
    _, *inferred, _ = await gathered
    assert served.backend.calls == [1, 6]
    for seed, answer in enumerate(inferred, start=1):
        np.testing.assert_allclose(logits_of(answer), expected_logits(noise(2, seed)), atol=1e-5)


def text(**members: object) -> bytes:
    """The JSON of a good request for one image, with other `members`."""
    return json.dumps({"inputs": [json_tensor(noise(1))]} | members).encode()


def tensor(**changes: object) -> bytes:
    return text(inputs=[json_tensor(noise(1), **changes)])


def without(member: str) -> bytes:
    whole = json_tensor(noise(1))
    del whole[member]
    return text(inputs=[whole])


def data(elements: str, shape: str = "[1,8,8,3]", datatype: str = "UINT8") -> bytes:
    return f'{{"inputs":[{{"name":"image","datatype":"{datatype}","shape":{shape},"data":{elements}}}]}}'.encode()


def first_element(element: str, datatype: str = "UINT8") -> bytes:
    return data(f"[{element}{',0' * 191}]", datatype=datatype)


def binary(size: object, body: bytes = bytes(192)) -> tuple[bytes, str]:
    whole = json_tensor(noise(1), parameters={"binary_data_size": size})
    del whole["data"]
    head = text(inputs=[whole])
    return head + body, str(len(head))


ONE = json_tensor(noise(1))
INVALID: dict[str, tuple[bytes | tuple[bytes, str], str]] = {
    "no body": (b"", "JSON can't be read"),
    "no JSON": (b"\x89PNG", "JSON is not UTF-8.*byte 0"),
    "cut short": (text()[:-1], "JSON can't be read"),
    "trailing garbage": (text() + b"x", "Extra data"),
    "an array": (b"[]", "an array; expected an object"),
    "nested 10,000 deep": (b"[" * 10_000 + b"]" * 10_000, "nested too deep"),
    "nested 10,000 deep in data": (data("[" * 10_000 + "]" * 10_000), "nested too deep"),
    "objects 10,000 deep": (b'{"a":' * 10_000 + b"0" + b"}" * 10_000, "nested too deep"),
    "nested 500 deep in data": (data("[" * 500 + "]" * 500), r"not nested as its shape \[1, 8, 8, 3\]"),
    "NaN": (first_element("NaN"), "NaN is no JSON"),
    "Infinity": (first_element("-Infinity", "FP32"), "-Infinity is no JSON"),
    "beyond every float": (first_element("1e999", "FP32"), "element inf, beyond the range of FP32"),
    "a name twice": (b'{"inputs":[],"inputs":[]}', "'inputs' is given twice"),
    "a name twice, deep": (b'{"inputs":[{"parameters":{"a":1,"a":2}}]}', "'a' is given twice"),
    "no UTF-8": (b'{"id":"\xff"}', "not UTF-8"),
    "half a character": (b'{"id":"a\\ud800","inputs":[]}', r"half a character, \\ud800"),
    "the other half": (b'{"\\uDC00":1,"inputs":[]}', r"half a character, \\udc00"),
    "a control character": (b'{"id":"\x01"}', "control character"),
    "a number of 5,000 digits": (first_element("1" * 5000), "JSON can't be read.*digits"),
    "an id that is no string": (text(id=1), "'id' is an integer.*expected a string"),
    "no inputs": (b"{}", "0 inputs are none"),
    "inputs that are no array": (text(inputs={}), "'inputs' is an object.*expected an array"),
    "an input that is no object": (text(inputs=[1]), "'inputs' holds an integer; expected objects"),
    "no name": (without("name"), "'name' is missing"),
    "no datatype": (without("datatype"), "'datatype' is missing"),
    "no shape": (without("shape"), "'shape' is missing"),
    "no elements": (without("data"), "has no elements; give one of data"),
    "two inputs": (text(inputs=[ONE, ONE]), "2 inputs"),
    "another datatype": (tensor(datatype="FP32"), "'FP32', expected 'UINT8'"),
    "no datatype of JSON": (tensor(datatype="BF16"), "'BF16', whose data can't be JSON"),
    "another shape": (tensor(shape=[1, 3, 8, 8]), r"shape \[1, 3, 8, 8\], expected \[images, 8, 8, 3\]"),
    "a shape of text": (tensor(shape=["1", 8, 8, 3]), "has '1'; expected integers"),
    "a shape of booleans": (tensor(shape=[True, 8, 8, 3]), "has True; expected integers"),
    "a shape beyond 64 bits": (tensor(shape=[2**63, 8, 8, 3]), "expected integers of 64 bits"),
    "a negative shape": (data("[]", "[-1,8,8,3]"), "0 elements; its shape"),
    "a thousand dimensions": (tensor(shape=[1] * 1000), "1000 dimensions"),
    "too few elements": (data("[0]"), "has 1 elements.*has 192"),
    "no array": (data('"abc"'), "is a string; expected an array"),
    "ragged": (data("[[1,2],[3]]", "[2,2]"), "not nested as its shape"),
    "nested otherwise": (data("[[1,2],[3,4],[5,6]]", "[2,3]"), "not nested as its shape"),
    "half nested": (data("[[1,2],3]", "[2,2]"), "not nested as its shape"),
    "half flat": (data("[1,2,[3],4]", "[2,2]"), r"element \[3\], an array; expected integers"),
    "a fraction": (first_element("1.5"), "element 1.5, a number with a fraction.*expected integers, as it is UINT8"),
    "an exponent": (first_element("1e2"), "element 100.0.*expected integers"),
    "a boolean among integers": (first_element("true"), "element True, a boolean"),
    "null": (first_element("null"), "element None, null"),
    "text": (first_element('"1"'), "element '1', a string"),
    "beyond the datatype": (first_element("256"), "element 256, beyond the range of UINT8"),
    "below the datatype": (first_element("-1"), "element -1, beyond the range of UINT8"),
    "beyond 64 bits": (first_element(str(2**64), "UINT64"), "beyond the range of UINT64"),
    "beyond half precision": (first_element("70000", "FP16"), "70000, beyond the range of FP16"),
    "a parameter that is null": (text(parameters={"a": None}), "'a' is None, null; expected a boolean, a string"),
    "a parameter that is an array": (text(parameters={"a": []}), "an array; expected a boolean"),
    "a parameter beyond 64 bits": (text(parameters={"a": 2**64}), "within 64 bits"),
    "a parameter beyond floats": (
        text().replace(b'{"inputs"', b'{"parameters":{"a":1e999},"inputs"'),
        "within 64 bits",
    ),
    "a wish that is no boolean": (text(parameters={"binary_data_output": 1}), "an integer; expected a boolean"),
    "another output": (text(outputs=[{"name": "labels"}]), "'labels' was asked for"),
    "an output without a name": (text(outputs=[{}]), "'name' is missing"),
    "a size that is no integer": (binary("192"), "'binary_data_size' is a string; expected an integer"),
    "too small a size": (binary(191), "1 bytes after the binary data of all inputs"),
    "too large a size": (binary(193), "binary_data_size 193; 192 bytes of the body are left"),
    "a negative size": (binary(-1), "binary_data_size -1"),
    "a size beyond 64 bits": (binary(2**70), "bytes of the body are left"),
    "fewer bytes than the shape": (binary(191, bytes(191)), "191 bytes; shape .* has 192"),
    "data and binary data": (tensor(parameters={"binary_data_size": 0}), "has data and binary_data_size; give one"),
    "a length beyond the body": ((text(), "100000"), "Inference-Header-Content-Length is 100000; the body"),
    "a length that is no number": ((text(), "+1"), "expected one length in bytes"),
    "a negative length": ((text(), "-1"), "expected one length in bytes"),
    "a length of many digits": ((text(), "9" * 5000), "expected one length in bytes"),
    "raw bytes of another size": ((bytes(191), "0"), "191 bytes; shape .* has 192"),
}


async def test_an_invalid_request_is_refused_with_the_reason_and_never_reaches_a_batch(start_http: StartServer) -> None:
    served = await start_http(max_images_per_request=8)
    for name, (body, reason) in INVALID.items():
        sent, length = body if isinstance(body, tuple) else (body, None)
        headers = {} if length is None else {"Inference-Header-Content-Length": length}
        answer = await call(served, "POST", INFER, sent, headers)
        assert answer.status == 400, f"{name}: {answer.body!r}"
        assert answer.headers["fuseline-error"] == "RequestError"
        assert re.search(reason, answer.error), f"{name}: {answer.error}"
        assert len(answer.body) < 1000, name
    assert served.backend.calls == []
    assert logits_of(await infer_binary(served, noise(8))).shape == (8, 4)


async def test_too_many_images_are_refused(start_http: StartServer) -> None:
    served = await start_http(max_images_per_request=8)
    assert "9 images, at most 8" in (await infer_binary(served, noise(9))).error


async def test_json_that_would_take_too_long_to_parse_is_too_large_but_binary_data_of_that_size_is_not(
    start_http: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await start_http()
    monkeypatch.setattr("fuseline.serve.http.infer_request.MAX_JSON_BYTES", 512)
    answer = await post_json(served, INFER, {"inputs": [json_tensor(noise(2))]})
    assert answer.status == 413
    assert "512 bytes of JSON" in answer.error
    assert "binary_data_size" in answer.error
    assert logits_of(await infer_binary(served, noise(20))).shape == (20, 4)


async def test_a_model_or_version_that_is_not_served_is_not_found(start_http: StartServer) -> None:
    served = await start_http()
    body, headers = binary_body(noise(1))
    for path, reason in (
        ("/v2/models/cats/infer", "'cats'"),
        ("/v2/models/colours/versions/2/infer", "version '2'"),
        ("/v2/models/c%C3%A4ts/infer", "'cäts'"),
    ):
        answer = await call(served, "POST", path, body, headers)
        assert (answer.status, answer.headers["fuseline-error"]) == (404, "UnknownModelError")
        assert reason in answer.error


async def test_overload_is_429_with_the_time_to_wait_and_a_passed_timeout_504(start_http: StartServer) -> None:
    served = await start_http(max_queue_rows=4, max_images_per_request=4)
    first = await served.busy_with(asyncio.create_task(infer_binary(served, noise(1))))
    late = await infer_binary(served, noise(1), parameters={"timeout": 1})
    assert (late.status, late.headers["fuseline-error"]) == (504, "DeadlineError")
    full = asyncio.create_task(infer_binary(served, noise(4)))
    await served.until(lambda: served.queued_rows == 4)
    answer = await infer_binary(served, noise(1))
    assert (answer.status, answer.headers["fuseline-error"]) == (429, "OverloadedError")
    served.backend.release()
    assert [answer.status for answer in await asyncio.gather(first, full)] == [200, 200]


@pytest.mark.parametrize(("coding", "decompress"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
async def test_a_long_answer_is_compressed_for_a_client_that_accepts_it(
    start_http: StartServer, coding: str, decompress: Any
) -> None:
    served = await start_http()
    pixels = noise(100)
    expected = logits_of(await infer_binary(served, pixels))
    for members, accepted, is_compressed in (
        ({}, coding, True),
        ({}, f"br, {coding}", True),
        ({}, "br", False),
        ({}, f"{coding};q=0", False),
        ({"parameters": {"binary_data_output": True}}, coding, True),
        # Libraries accept all they know without being told to, and logits hardly shrink.
        ({"parameters": {"binary_data_output": True}}, f"{coding}, br", False),
    ):
        body, headers = binary_body(pixels, **members)
        answer = await call(served, "POST", INFER, body, headers | {"Accept-Encoding": accepted})
        assert answer.headers["content-encoding"] == (coding if is_compressed else None), accepted
        plain = Answer(200, answer.headers, decompress(answer.body) if is_compressed else answer.body)
        np.testing.assert_array_equal(logits_of(plain), expected)
    short = await call(served, "POST", INFER, *binary_body(noise(1)))
    assert short.headers["content-encoding"] is None


async def test_a_request_whose_client_goes_away_leaves_the_queue(start_http: StartServer) -> None:
    served = await start_http()
    first = await served.busy_with(asyncio.create_task(infer_binary(served, noise(1))))
    body, headers = binary_body(noise(3))
    fields = "".join(f"{name}: {value}\r\n" for name, value in (headers | {"Content-Length": str(len(body))}).items())
    _, writer = await asyncio.open_connection("127.0.0.1", served.server.http_port)
    writer.write(f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode() + body)
    await served.until(lambda: served.queued_rows == 3)
    writer.close()
    await served.until(lambda: served.queued_rows == 0)
    served.backend.release()
    assert (await first).status == 200
    assert served.backend.calls == [1]
    assert served.server.answers() == "1 CANCELLED, 1 OK"


async def test_requests_are_counted_as_those_of_grpc_are(start_http: StartServer) -> None:
    served = await start_http()
    await infer_binary(served, noise(2))
    await call(served, "POST", INFER, *binary_body(noise(200)))
    metrics = (await get(served, "/metrics")).body.decode()
    counted = re.findall(r"fuseline_requests_total\{(.*)\} (.*)", metrics)
    assert {(tuple(sorted(labels.split(","))), float(count)) for labels, count in counted} == {
        ((f'code="{code}"', 'method="http/infer"', 'model="colours"', 'version="1"'), 1.0)
        for code in ("OK", "INVALID_ARGUMENT")
    }
    (statistics,) = (await get(served, "/v2/models/colours/stats")).json["model_stats"]
    assert (statistics["inference_count"], statistics["inference_stats"]["success"]["count"]) == (2, 1)


async def test_a_drain_answers_what_was_admitted_over_http_and_refuses_the_rest(start_http: StartServer) -> None:
    served = await start_http()
    running = await served.busy_with(asyncio.create_task(infer_binary(served, noise(1))))
    queued = asyncio.create_task(infer_binary(served, noise(2)))
    await served.until(lambda: served.queued_rows == 2)
    draining = asyncio.create_task(served.server.drain())
    await served.until(lambda: not served.server.ready)
    late = await infer_binary(served, noise(1))
    assert (late.status, "shutting down" in late.error) == (503, True)
    assert (await get(served, "/readyz")).status == 503
    served.backend.release()
    assert [len(logits_of(await call)) for call in (running, queued)] == [1, 2]
    await draining
    assert served.server.answers() == "2 OK, 1 UNAVAILABLE"


async def test_what_is_pipelined_behind_a_probe_is_answered_though_a_probes_answer_closes(
    start_http: StartServer,
) -> None:
    served = await start_http()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.server.http_port)
    writer.write(b"".join(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in (b"/healthz", b"/v2", b"/readyz")))
    answers = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    assert answers.count(b"HTTP/1.1 200 OK") == 3
    assert answers.index(b"alive") < answers.index(b"extensions") < answers.index(b"ready\n")
