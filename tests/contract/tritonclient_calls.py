"""Run by the Python of .venv-tritonclient: drives a server with the unmodified tritonclient, tells in JSON what it saw.

    python tritonclient_calls.py ADDRESS PIXELS.npy

The pictures are (rows, height, width, channels) uint8, more than one.
"""

import asyncio
import json
import queue
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

MODEL = "colours"


def main(address: str, pixels: np.ndarray) -> dict[str, Any]:
    with triton.InferenceServerClient(address) as client:
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(MODEL, "1"),
            "unknown_model_ready": client.is_model_ready("cats"),
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata(MODEL, as_json=True),
            "config": client.get_model_config(MODEL, as_json=True)["config"],
            "index": client.get_model_repository_index(as_json=True)["models"],
            "logits": {
                "infer": _logits(client.infer(MODEL, _inputs(pixels), request_id="mine")),
                "gzip": _logits(client.infer(MODEL, _inputs(pixels), compression_algorithm="gzip")),
                "asked_for": _logits(client.infer(MODEL, _inputs(pixels), outputs=_outputs(), timeout=10**7)),
                "async_infer": _async_logits(client, pixels),
                "stream": _stream_logits(client, pixels),
                "asyncio": asyncio.run(_asyncio_logits(address, pixels)),
            },
            "errors": _errors(client, pixels),
            "statistics": client.get_inference_statistics(MODEL, as_json=True)["model_stats"],
            "messages": _messages(),
        }


def _inputs(pixels: np.ndarray, name: str = "image", datatype: str = "UINT8") -> list[triton.InferInput]:
    tensor = triton.InferInput(name, list(pixels.shape), datatype)
    tensor.set_data_from_numpy(pixels)
    return [tensor]


def _outputs(name: str = "logits") -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name)]


def _logits(result: triton.InferResult) -> list[list[float]]:
    logits = result.as_numpy("logits")
    assert logits.dtype == np.float32
    return logits.tolist()


def _async_logits(client: triton.InferenceServerClient, pixels: np.ndarray) -> list[list[float]]:
    """Every row in a request of its own, all of them at once."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def answered(result: triton.InferResult, error: InferenceServerException | None) -> None:
        answers.put((result, error))

    for number in range(len(pixels)):
        client.async_infer(MODEL, _inputs(pixels[number : number + 1]), answered, request_id=str(number))
    rows = {}
    for _ in pixels:
        result, error = answers.get(timeout=30)
        if error is not None:
            raise error
        (rows[int(result.get_response().id)],) = _logits(result)
    return [rows[number] for number in range(len(pixels))]


def _stream_logits(client: triton.InferenceServerClient, pixels: np.ndarray) -> list[list[float]]:
    """Every row in a request of its own, all of them in one stream."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(len(pixels)):
        client.async_stream_infer(MODEL, _inputs(pixels[number : number + 1]), request_id=str(number))
    rows = []
    for number in range(len(pixels)):
        result, error = answers.get(timeout=30)
        if error is not None:
            raise error
        assert result.get_response().id == str(number)
        rows += _logits(result)
    client.stop_stream()
    return rows


async def _asyncio_logits(address: str, pixels: np.ndarray) -> list[list[float]]:
    async with triton_aio.InferenceServerClient(address) as client:
        results = await asyncio.gather(*(client.infer(MODEL, _inputs(row[np.newaxis])) for row in pixels))
    return [_logits(result)[0] for result in results]


def _errors(client: triton.InferenceServerClient, pixels: np.ndarray) -> dict[str, list[str]]:
    """Status and message of what each mistake raises."""
    mistakes: dict[str, Callable[[], object]] = {
        "datatype": lambda: client.infer(MODEL, _inputs(pixels.astype(np.float32), datatype="FP32")),
        "shape": lambda: client.infer(MODEL, _inputs(pixels.transpose(0, 3, 1, 2).copy())),
        "input": lambda: client.infer(MODEL, _inputs(pixels, "pixels")),
        "output": lambda: client.infer(MODEL, _inputs(pixels), outputs=_outputs("labels")),
        "too many": lambda: client.infer(MODEL, _inputs(np.repeat(pixels, 200, axis=0))),
        "model": lambda: client.infer("cats", _inputs(pixels)),
        "version": lambda: client.infer(MODEL, _inputs(pixels), model_version="2"),
        "load": lambda: client.load_model(MODEL),
    }
    seen = {}
    for name, make in mistakes.items():
        try:
            make()
        except InferenceServerException as error:
            seen[name] = [error.status(), error.message()]
    return seen


def _messages() -> dict[str, dict[str, list[Any]]]:
    """Each message of the protocol as this client has it: its fields' numbers, types, and whether they are repeated."""
    found: dict[str, dict[str, list[Any]]] = {}

    def tell(message: Any) -> None:
        found[message.full_name] = {field.name: describe_field(field) for field in message.fields}
        for nested in message.nested_types:
            tell(nested)

    for file in (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR):
        for message in file.message_types_by_name.values():
            tell(message)
    return found


def describe_field(field: Any) -> list[Any]:
    """What of a field its bytes on the wire depend on."""
    of_message = field.message_type.full_name if field.message_type is not None else None
    values = {value.name: value.number for value in field.enum_type.values} if field.enum_type is not None else None
    return [field.number, field.type, field.is_repeated, of_message, values]


if __name__ == "__main__":
    json.dump(main(sys.argv[1], np.load(sys.argv[2])), sys.stdout)
