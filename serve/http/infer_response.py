"""Makes the body of an infer answer of ModelInferResponse: JSON, with tensors in it or, as raw bytes, after it."""

import json
from typing import Any

from fuseline.protos.open_inference_pb2 import ModelInferResponse
from fuseline.serve.http.infer_request import BinaryOutputs
from fuseline.serve.http.message_json import scalar_of
from fuseline.serve.http.tensor_json import json_from_raw


def body_from_infer_response(response: ModelInferResponse, binary: BinaryOutputs) -> tuple[bytes, int | None]:
    """Return the body, and the length of the JSON in it; None: all of it is JSON.

    Outputs in `binary` follow the JSON, in the order of the outputs in it. One in shared memory has no elements here.
    """
    members: dict[str, Any] = {"id": response.id} if response.id else {}
    members |= {"model_name": response.model_name, "model_version": response.model_version}
    if response.parameters:
        members["parameters"] = _parameters(response.parameters)
    raw_contents = iter(response.raw_output_contents)
    # Those in shared memory may have an empty place among the raw contents, or none.
    has_place_for_each = len(response.raw_output_contents) == len(response.outputs)
    outputs: list[str] = []
    parts: list[bytes] = []
    for output in response.outputs:
        parameters = _parameters(output.parameters)
        head: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        data = ""
        if "shared_memory_region" in parameters:
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
            head["parameters"] = parameters
        outputs.append(f"{_dumps(head)[:-1]}{data}}}")
    text = f'{_dumps(members)[:-1]},"outputs":[{",".join(outputs)}]}}'.encode()
    return (b"".join((text, *parts)), len(text)) if parts else (text, None)


def _parameters(parameters: Any) -> dict[str, Any]:
    return {name: scalar_of(value, "parameter_choice") for name, value in parameters.items()} if parameters else {}


def _dumps(value: object) -> str:
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
