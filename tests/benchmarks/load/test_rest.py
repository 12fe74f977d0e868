"""What the load generator asks by REST, and which answers it takes."""

import json
from typing import Any

import numpy as np
import pytest

from fuseline.benchmarks.load.rest import RestInference
from fuseline.serve.errors import VerificationError

WIRE = RestInference("tiny", "image", (2, 2, 3), "logits", classes=3, images=2)
PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
LOGITS = np.array([[1, 2, 3], [6, 5, 4]], "<f4")


def answer(logits: bytes = LOGITS.tobytes(), **changes: Any) -> bytes:
    output = {"name": "logits", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}} | changes
    return json.dumps({"model_name": "tiny", "outputs": [output]}).encode() + logits


def test_a_request_is_a_header_whose_length_is_told_and_the_pixels() -> None:
    body, fields = WIRE.request(PIXELS, with_logits=True), dict(WIRE.fields)
    length = int(fields["Inference-Header-Content-Length"])
    (source,) = json.loads(body[:length])["inputs"]
    assert (source["datatype"], source["shape"]) == ("UINT8", [2, 2, 2, 3])
    assert source["parameters"] == {"binary_data_size": 24}
    assert body[length:] == PIXELS.tobytes()
    assert WIRE.method == "/v2/models/tiny/infer"


def test_an_answers_logits_are_read_and_held_against_the_expected_ones() -> None:
    np.testing.assert_array_equal(WIRE.logits(answer()), LOGITS)
    WIRE.check("it", "fp32", answer(), LOGITS)
    with pytest.raises(VerificationError, match="it"):
        WIRE.check("it", "fp32", answer(), LOGITS[::-1])


@pytest.mark.parametrize(
    "wrong",
    [
        answer(name="others"),
        answer(shape=[3, 2]),
        answer(parameters={"binary_data_size": 23}),
        answer(logits=b""),
        b"",
        b"[]" + LOGITS.tobytes(),
        json.dumps({"outputs": []}).encode() + LOGITS.tobytes(),
    ],
)
def test_an_answer_that_is_none_is_told_apart(wrong: bytes) -> None:
    with pytest.raises(VerificationError, match="was asked for"):
        WIRE.logits(wrong)
