"""Elements of tensors between JSON and raw bytes, and infer bodies whatever they hold."""

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fuseline.protos.open_inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from fuseline.serve.errors import RequestError
from fuseline.serve.http.infer_request import BinaryOutputs, infer_request_from_body
from fuseline.serve.http.infer_response import body_from_infer_response
from fuseline.serve.http.tensor_json import NUMPY_TYPE_OF_DATATYPE, json_from_raw, raw_from_json


def extremes(numpy_type: np.dtype[Any]) -> NDArray[Any]:
    if numpy_type.kind == "b":
        return np.array([True, False])
    if numpy_type.kind == "f":
        limits = np.finfo(numpy_type)
        return np.array([limits.min, limits.max, limits.tiny, limits.smallest_subnormal, -0.0, 0.1, 1 / 3], numpy_type)
    whole = np.iinfo(numpy_type)
    return np.array([whole.min, whole.max, 0, 1], numpy_type)


@pytest.mark.parametrize("datatype", NUMPY_TYPE_OF_DATATYPE)
def test_every_element_of_a_datatype_survives_json_bit_for_bit(datatype: str) -> None:
    elements = extremes(NUMPY_TYPE_OF_DATATYPE[datatype])
    text = json_from_raw(datatype, elements.tobytes())
    assert raw_from_json("x", datatype, [len(elements)], json.loads(text)) == elements.tobytes()
    nested = [[[element]] for element in json.loads(text)]
    assert raw_from_json("x", datatype, [len(elements), 1, 1], nested) == elements.tobytes()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_floats_have_the_shortest_text_that_fp32_tells_apart(values: list[float]) -> None:
    elements = np.array(values, np.float32)
    parsed = json.loads(json_from_raw("FP32", elements.tobytes()))
    np.testing.assert_array_equal(np.array(parsed, np.float32), elements)
    assert [np.float32(repr(value)) for value in parsed] == elements.tolist()


def test_strings_are_bytes_with_their_length_before_them() -> None:
    raw = raw_from_json("x", "BYTES", [2, 1], [["ä"], [""]])
    assert raw == b"\2\0\0\0\xc3\xa4\0\0\0\0"
    assert json.loads(json_from_raw("BYTES", raw)) == ["ä", ""]


def test_a_tensor_without_elements_has_none() -> None:
    assert raw_from_json("x", "UINT8", [0, 8, 8, 3], []) == b""
    assert raw_from_json("x", "UINT8", [2, 0], [[], []]) == b""
    with pytest.raises(RequestError, match="0 elements; its shape .* has 1"):
        raw_from_json("x", "UINT8", [], [])


def test_inputs_in_json_in_binary_and_in_shared_memory_keep_their_order() -> None:
    text = json.dumps(
        {
            "inputs": [
                {"name": "a", "datatype": "UINT8", "shape": [2], "parameters": {"binary_data_size": 2}},
                {"name": "b", "datatype": "UINT8", "shape": [1], "data": [7]},
                {
                    "name": "c",
                    "datatype": "UINT8",
                    "shape": [1],
                    "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 1},
                },
                {"name": "d", "datatype": "UINT8", "shape": [3], "parameters": {"binary_data_size": 3}},
            ],
            "outputs": [{"name": "o", "parameters": {"classification": 3, "binary_data": True}}, {"name": "p"}],
            "parameters": {"binary_data_output": False, "timeout": 5, "big": 2**63, "half": 0.5, "yes": True, "t": "x"},
        }
    ).encode()
    for part in (bytes, bytearray):
        request, binary = infer_request_from_body(part(text + b"aaddd"), len(text), model="m", version="1")
        assert list(request.raw_input_contents) == [b"aa", b"\7", b"ddd"]
        assert [tensor.name for tensor in request.inputs] == ["a", "b", "c", "d"]
        assert dict(request.inputs[2].parameters) == {
            "shared_memory_region": InferParameter(string_param="r"),
            "shared_memory_byte_size": InferParameter(int64_param=1),
        }
        assert "binary_data_size" not in request.inputs[0].parameters
        assert dict(request.outputs[0].parameters) == {"classification": InferParameter(int64_param=3)}
        assert ("o" in binary, "p" in binary) == (True, False)
        assert {name: value.WhichOneof("parameter_choice") for name, value in request.parameters.items()} == {
            "timeout": "int64_param",
            "big": "uint64_param",
            "half": "double_param",
            "yes": "bool_param",
            "t": "string_param",
        }


def test_requests_with_the_same_json_do_not_share_what_follows_it() -> None:
    tensor = {"name": "a", "datatype": "UINT8", "shape": [1], "parameters": {"binary_data_size": 1}}
    text = json.dumps({"inputs": [tensor]}).encode()
    requests = [
        infer_request_from_body(text + bytes([number]), len(text), model=model, version="")[0]
        for number, model in enumerate(("m", "n", "m"))
    ]
    assert [(request.model_name, request.raw_input_contents[0]) for request in requests] == [
        ("m", b"\0"),
        ("n", b"\1"),
        ("m", b"\2"),
    ]
    with pytest.raises(RequestError, match="0 bytes of the body are left"):
        infer_request_from_body(text, len(text), model="m", version="")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5) | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["id", "inputs", "outputs", "parameters", "name", "shape", "datatype", "data", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(JSON_VALUES, st.integers(0, 200) | st.none(), st.binary(max_size=10))
def test_no_body_raises_anything_but_a_request_error(value: object, length: int | None, rest: bytes) -> None:
    body = json.dumps({"inputs": [value]} if not isinstance(value, dict) else value).encode()
    for sent in (body + rest, body, rest):
        with suppress(RequestError):
            request, _ = infer_request_from_body(sent, length, model="m", version="")
            assert isinstance(request, ModelInferRequest)


@pytest.mark.parametrize("has_empty_place", [False, True])
def test_an_output_in_shared_memory_has_neither_elements_nor_parameters_in_the_answer(has_empty_place: bool) -> None:
    response = ModelInferResponse(model_name="m", model_version="1", raw_output_contents=[b"\1"])
    for name in ("shared", "b"):
        response.outputs.add(name=name, datatype="UINT8", shape=[1])
    response.outputs[0].parameters["shared_memory_region"].string_param = "r"
    if has_empty_place:
        response.raw_output_contents.insert(0, b"")
    body, length = body_from_infer_response(response, BinaryOutputs())
    assert length is None
    shared, other = json.loads(body)["outputs"]
    assert shared == {"name": "shared", "datatype": "UINT8", "shape": [1]}
    assert other["data"] == [1]
    body, length = body_from_infer_response(response, BinaryOutputs(by_default=True))
    assert body[length:] == b"\1"
