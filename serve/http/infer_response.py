"""Makes the body of an infer answer of ModelInferResponse: JSON, with tensors in it or, as raw bytes, after it."""

from functools import lru_cache
from typing import Any

from fuseline.protos.open_inference_pb2 import ModelInferResponse
from fuseline.serve.http.http_answers import compact_json
from fuseline.serve.http.infer_request import BinaryOutputs
from fuseline.serve.http.message_json import scalar_of
from fuseline.serve.http.tensor_json import json_from_raw


def body_from_infer_response(response: ModelInferResponse, binary: BinaryOutputs) -> tuple[bytes, int | None]:
    """Return the body, and the length of the JSON in it; None: all of it is JSON.

    Outputs in `binary` follow the JSON, in the order of the outputs in it. One in shared memory has no elements and no
    parameters here.
    """
    text = _model_members(response.model_name, response.model_version)
    if response.id:
        text += f',"id":{compact_json(response.id)}'
    if response.parameters:
        text += f',"parameters":{compact_json(_parameters(response.parameters))}'
    raw_contents = iter(response.raw_output_contents)
    # Those in shared memory may have an empty place among the raw contents, or none.
    has_place_for_each = len(response.raw_output_contents) == len(response.outputs)
    outputs: list[str] = []
    parts: list[bytes] = []
    for output in response.outputs:
        members = _output_members(output.name, output.datatype, tuple(output.shape))
        parameters = _parameters(output.parameters) if output.parameters else {}
        data = ""
        if "shared_memory_region" in parameters:
            # Triton's C++ client takes any parameters here for those of a binary tensor, and fails without its size.
            parameters = {}
            if has_place_for_each:
                next(raw_contents)
        else:
            raw = next(raw_contents)
            if output.name in binary:
                parameters["binary_data_size"] = len(raw)
                parts.append(raw)
            else:
                data = f',"data":{json_from_raw(output.datatype, raw)}'
        if parameters:
            data = f',"parameters":{compact_json(parameters)}{data}'
        outputs.append(f"{members}{data}}}")
    json_text = f'{{{text},"outputs":[{",".join(outputs)}]}}'.encode()
    return (b"".join((json_text, *parts)), len(json_text)) if parts else (json_text, None)


# What follows are few and the server's own words, the same for nearly every answer.
@lru_cache(maxsize=256)
def _model_members(name: str, version: str) -> str:
    return f'"model_name":{compact_json(name)},"model_version":{compact_json(version)}'


@lru_cache(maxsize=256)
def _output_members(name: str, datatype: str, shape: tuple[int, ...]) -> str:
    return compact_json({"name": name, "datatype": datatype, "shape": shape})[:-1]


def _parameters(parameters: Any) -> dict[str, Any]:
    return {name: scalar_of(value, "parameter_choice") for name, value in parameters.items()}
