"""Run by the Python of .venv-tritonclient: Triton's extensions over gRPC, by tritonclient's gRPC clients.

`tests/contract/tritonclient_calls.py` drives what the protocol has without them.
"""

import asyncio
import queue
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from triton_common import MODEL, awaited, classes_of, elements_of, logits_of, outcome, run
from tritonclient.utils import InferenceServerException


def main(address: str, _: str, pixels: Any, files: list[bytes]) -> dict[str, Any]:
    with triton.InferenceServerClient(address) as client:
        return {
            "logits": _logits(client, pixels),
            "files": _file_logits(client, address, files),
            "classes": {
                "unary": {
                    count: outcome(lambda count=count: classes_of(_infer(client, pixels, outputs=_outputs(count))))
                    for count in (1, 2, 4, 99)
                },
                "of files": outcome(
                    lambda: classes_of(client.infer(MODEL, _files(files, len(files), 1), outputs=_outputs(2)))
                ),
                "stream": _stream(client, pixels, classes_of, outputs=_outputs(2)),
                "asyncio": asyncio.run(_asyncio(address, pixels)),
            },
            "stream": {
                "plain": _stream(client, pixels, logits_of),
                "final asked for": _stream(client, pixels, logits_of, enable_empty_final_response=True),
                "asyncio": asyncio.run(_asyncio_stream(address, pixels)),
            },
            "stream, one wrong": _stream_with_a_mistake(client, pixels),
            "cancelled": _cancelled(client, pixels),
            "settings": _settings(client),
            "refused": _refused(client, pixels),
        }


def _tensor(array: Any, datatype: str = "UINT8") -> list[Any]:
    tensor = triton.InferInput("image", list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return [tensor]


def _files(files: list[bytes], *shape: int) -> list[Any]:
    return _tensor(elements_of(files, *shape), "BYTES")


def _outputs(class_count: int = 0) -> list[Any]:
    return [triton.InferRequestedOutput("logits", class_count=class_count)]


def _infer(client: Any, pixels: Any, **how: Any) -> Any:
    return client.infer(MODEL, _tensor(pixels), **how)


def _logits(client: Any, pixels: Any) -> dict[str, Any]:
    ways: dict[str, dict[str, Any]] = {
        "priority": {"priority": 1},
        "time to wait": {"timeout": 10**8},
        "no time limit": {"timeout": 0},
        "sequence": {"sequence_id": 7, "sequence_start": True, "sequence_end": True},
        "sequence by name": {"sequence_id": "mine", "sequence_start": True, "sequence_end": True},
        "own parameters": {"parameters": {"mine": "yes", "deep": 3, "so": True, "share": 0.5}},
        "headers": {"headers": {"x-mine": "yes"}},
        "client timeout": {"client_timeout": 60.0},
        "deflate": {"compression_algorithm": "deflate"},
        "gzip": {"compression_algorithm": "gzip"},
    }
    return {name: outcome(lambda how=how: logits_of(_infer(client, pixels, **how))) for name, how in ways.items()}


def _file_logits(client: Any, address: str, files: list[bytes]) -> dict[str, Any]:
    async def asyncio_files() -> Any:
        async with triton_aio.InferenceServerClient(address) as aio_client:

            async def ask() -> list[list[float]]:
                return logits_of(await aio_client.infer(MODEL, _files(files, len(files), 1)))

            return await awaited(ask())

    return {
        "shape [n, 1]": outcome(lambda: logits_of(client.infer(MODEL, _files(files, len(files), 1)))),
        "shape [n]": outcome(lambda: logits_of(client.infer(MODEL, _files(files, len(files))))),
        "asyncio": asyncio.run(asyncio_files()),
    }


def _stream(client: Any, pixels: Any, read: Callable[[Any], Any], **how: Any) -> Any:
    """Each row in a request of its own; of each answer [id, whether it says that it is final, what `read` finds]."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number, row in enumerate(pixels):
        client.async_stream_infer(MODEL, _tensor(row[np.newaxis]), request_id=str(number), **how)

    def gather() -> list[Any]:
        found = []
        for _ in pixels:
            result, error = answers.get(timeout=30)
            if error is not None:
                raise error
            response = result.get_response()
            found.append([response.id, response.parameters["triton_final_response"].bool_param, *read(result)])
        return found

    found = outcome(gather)
    client.stop_stream()
    # None may come after the last.
    return found if answers.empty() else {"message": f"{answers.qsize()} more answers"}


def _stream_with_a_mistake(client: Any, pixels: Any) -> dict[str, Any]:
    """Between two good requests one to an unknown model: each answer, and the error's message, in order."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number, model in enumerate((MODEL, "cats", MODEL)):
        client.async_stream_infer(model, _tensor(pixels[:1]), request_id=str(number))
    found: dict[str, Any] = {"logits": [], "errors": []}
    for _ in range(3):
        result, error = answers.get(timeout=30)
        if error is None:
            found["logits"] += logits_of(result)
        else:
            found["errors"].append(error.message())
    client.stop_stream()
    return found


def _cancelled(client: Any, pixels: Any) -> dict[str, Any]:
    """What a call says that its caller gives up at once, unless its answer came first; and the answer after it."""
    ended: queue.Queue[Any] = queue.Queue()
    call = client.async_infer(MODEL, _tensor(pixels), lambda result, error: ended.put((result, error)))
    call.cancel()
    result, error = ended.get(timeout=30)
    return {
        "first": "answered" if error is None else error.status(),
        "result": logits_of(result) if error is None else None,
        "next": logits_of(_infer(client, pixels)),
    }


async def _asyncio(address: str, pixels: Any) -> Any:
    async with triton_aio.InferenceServerClient(address) as client:

        async def ask() -> list[list[str]]:
            return classes_of(await client.infer(MODEL, _tensor(pixels), outputs=_outputs(2)))

        return await awaited(ask())


async def _asyncio_stream(address: str, pixels: Any) -> Any:
    async with triton_aio.InferenceServerClient(address) as client:

        async def requests() -> AsyncIterator[dict[str, Any]]:
            for number, row in enumerate(pixels):
                yield {"model_name": MODEL, "inputs": _tensor(row[np.newaxis]), "request_id": str(number)}

        async def ask() -> list[Any]:
            found = []
            async for result, error in client.stream_infer(requests(), stream_timeout=60):
                if error is not None:
                    raise error
                response = result.get_response()
                final = response.parameters["triton_final_response"].bool_param
                found.append([response.id, final, *logits_of(result)])
            return found

        return await awaited(ask())


def _settings(client: Any) -> dict[str, Any]:
    return {
        "trace": outcome(lambda: client.get_trace_settings(as_json=True)),
        "trace of the model": outcome(lambda: client.get_trace_settings(MODEL, as_json=True)),
        "log": outcome(lambda: client.get_log_settings(as_json=True)),
        "log set": outcome(lambda: client.update_log_settings({"log_verbose_level": 1}, as_json=True)),
        "log set back": outcome(lambda: client.update_log_settings({"log_verbose_level": 0}, as_json=True)),
        "log file": outcome(lambda: client.update_log_settings({"log_file": "elsewhere.log"}, as_json=True)),
        "trace file": outcome(lambda: client.update_trace_settings(settings={"trace_file": "t.json"}, as_json=True)),
    }


def _refused(client: Any, pixels: Any) -> dict[str, Any]:
    def with_classes(value: Any, field: str) -> Any:
        output = triton.InferRequestedOutput("logits", class_count=1)
        output._get_tensor().parameters["classification"].Clear()
        setattr(output._get_tensor().parameters["classification"], field, value)
        return client.infer(MODEL, _tensor(pixels), outputs=[output])

    mistakes: dict[str, Callable[[], Any]] = {
        "classes as text": lambda: with_classes("2", "string_param"),
        "no classes": lambda: with_classes(0, "int64_param"),
        "fewer than no classes": lambda: with_classes(-1, "int64_param"),
        "no picture": lambda: client.infer(MODEL, _files([b"no picture"], 1, 1)),
        "empty picture": lambda: client.infer(MODEL, _files([b""], 1, 1)),
    }
    return {name: outcome(make) for name, make in mistakes.items()}


if __name__ == "__main__":
    try:
        run(main)
    except InferenceServerException as error:
        raise SystemExit(f"{error.status()}: {error.message()}") from error
