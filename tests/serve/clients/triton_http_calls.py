"""Run by the Python of .venv-tritonclient: drives a server with tritonclient's HTTP clients."""

import asyncio
from typing import Any

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from triton_common import MODEL, awaited, classes_of, elements_of, logits_of, outcome, run


def main(_: str, address: str, pixels: Any, files: list[bytes]) -> dict[str, Any]:
    with triton.InferenceServerClient(address, concurrency=8) as client:
        return {
            "logits": {**_logits(client, pixels), **asyncio.run(_asyncio_logits(address, pixels))},
            "rows": {
                "async_infer": outcome(lambda: _async_rows(client, pixels)),
                "asyncio": asyncio.run(_asyncio_rows(address, pixels)),
            },
            "files": {
                "shape [n, 1]": outcome(lambda: logits_of(client.infer(MODEL, _files(files, len(files), 1)))),
                "shape [n]": outcome(lambda: logits_of(client.infer(MODEL, _files(files, len(files))))),
                "asyncio": asyncio.run(_asyncio_files(address, files)),
            },
            "classes": {
                "binary": outcome(lambda: classes_of(_infer(client, pixels, outputs=_outputs(class_count=2)))),
                "JSON": outcome(
                    lambda: classes_of(_infer(client, pixels, outputs=_outputs(class_count=2, binary_data=False)))
                ),
            },
            "answer": outcome(lambda: _infer(client, pixels[:1], request_id="mine").get_response()),
            "described": _described(client),
            "refused": _refused(client, pixels),
            "statistics": outcome(lambda: client.get_inference_statistics(MODEL)),
            "all statistics": outcome(client.get_inference_statistics),
        }


def _inputs(pixels: Any, *, name: str = "image", datatype: str = "UINT8", binary: bool = True) -> list[Any]:
    tensor = triton.InferInput(name, list(pixels.shape), datatype)
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    return [tensor]


def _files(files: list[bytes], *shape: int) -> list[Any]:
    return _inputs(elements_of(files, *shape), datatype="BYTES")


def _outputs(name: str = "logits", **how: Any) -> list[Any]:
    return [triton.InferRequestedOutput(name, **how)]


def _infer(client: Any, pixels: Any, *, binary: bool = True, **how: Any) -> Any:
    return client.infer(MODEL, _inputs(pixels, binary=binary), **how)


def _logits(client: Any, pixels: Any) -> dict[str, Any]:
    """Every way to ask for all of them at once."""
    as_json = _outputs(binary_data=False)
    ways: dict[str, dict[str, Any]] = {
        "binary": {},
        "binary, output named": {"outputs": _outputs()},
        "JSON": {"binary": False, "outputs": as_json},
        "JSON in": {"binary": False},
        "JSON out": {"outputs": as_json},
        "version named": {"model_version": "1"},
        "parameters": {"priority": 1, "timeout": 10**8, "parameters": {"mine": "yes", "deep": 3, "so": True}},
        "sequence": {"sequence_id": 7, "sequence_start": True, "sequence_end": True},
        "headers and query": {"headers": {"X-Mine": "yes"}, "query_params": {"mine": "yes"}},
        **{
            f"{sent} out, {asked or 'nothing'} asked": {
                "request_compression_algorithm": sent,
                "response_compression_algorithm": asked,
            }
            for sent, asked in (("gzip", None), ("deflate", None), (None, "gzip"), (None, "deflate"), ("gzip", "gzip"))
        },
        "JSON, gzip both ways": {
            "binary": False,
            "outputs": as_json,
            "request_compression_algorithm": "gzip",
            "response_compression_algorithm": "gzip",
        },
    }
    found = {name: outcome(lambda how=how: logits_of(_infer(client, pixels, **how))) for name, how in ways.items()}
    return found | {"body made and parsed apart": outcome(lambda: _by_body(client, pixels))}


def _by_body(client: Any, pixels: Any) -> list[list[float]]:
    """By the client's static methods, as callers do who bring an HTTP library of their own."""
    body, header_length = client.generate_request_body(_inputs(pixels), outputs=_outputs())
    headers = {"Inference-Header-Content-Length": str(header_length)}
    response = client._post(f"v2/models/{MODEL}/infer", body, headers, None)
    answer = response.read()
    result = client.parse_response_body(answer, header_length=int(response["inference-header-content-length"]))
    return logits_of(result)


def _async_rows(client: Any, pixels: Any) -> list[list[float]]:
    """Every row in a request of its own, all of them under way at once."""
    requests = [client.async_infer(MODEL, _inputs(row[np.newaxis])) for row in pixels]
    return [logits_of(request.get_result(timeout=30))[0] for request in requests]


async def _asyncio_logits(address: str, pixels: Any) -> dict[str, Any]:
    ways: dict[str, dict[str, Any]] = {
        "asyncio": {},
        "asyncio, JSON": {"binary": False, "outputs": _outputs(binary_data=False)},
        "asyncio, gzip": {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"},
    }
    async with triton_aio.InferenceServerClient(address) as client:

        async def ask(*, binary: bool = True, **how: Any) -> list[list[float]]:
            return logits_of(await client.infer(MODEL, _inputs(pixels, binary=binary), **how))

        return {name: await awaited(ask(**how)) for name, how in ways.items()}


async def _asyncio_rows(address: str, pixels: Any) -> Any:
    async with triton_aio.InferenceServerClient(address) as client:

        async def ask() -> list[list[float]]:
            results = await asyncio.gather(*(client.infer(MODEL, _inputs(row[np.newaxis])) for row in pixels))
            return [logits_of(result)[0] for result in results]

        return await awaited(ask())


async def _asyncio_files(address: str, files: list[bytes]) -> Any:
    async with triton_aio.InferenceServerClient(address) as client:

        async def ask() -> list[list[float]]:
            return logits_of(await client.infer(MODEL, _files(files, len(files), 1)))

        return await awaited(ask())


def _described(client: Any) -> dict[str, Any]:
    return {
        "live": outcome(client.is_server_live),
        "ready": outcome(client.is_server_ready),
        "model ready": outcome(lambda: client.is_model_ready(MODEL, "1")),
        "unknown model ready": outcome(lambda: client.is_model_ready("cats")),
        "server": outcome(client.get_server_metadata),
        "metadata": outcome(lambda: client.get_model_metadata(MODEL)),
        "config": outcome(lambda: client.get_model_config(MODEL)),
        "index": outcome(client.get_model_repository_index),
        "trace": outcome(lambda: client.get_trace_settings(MODEL)),
        "log": outcome(client.get_log_settings),
        "log set": outcome(lambda: client.update_log_settings({"log_verbose_level": 1})),
        "log set back": outcome(lambda: client.update_log_settings({"log_verbose_level": 0})),
        "system shared memory": outcome(client.get_system_shared_memory_status),
    }


def _refused(client: Any, pixels: Any) -> dict[str, Any]:
    """What each mistake raises."""
    floats = pixels.astype(np.float32)
    mistakes = {
        "datatype": lambda: client.infer(MODEL, _inputs(floats, datatype="FP32")),
        "shape": lambda: client.infer(MODEL, _inputs(pixels.transpose(0, 3, 1, 2).copy())),
        "input": lambda: client.infer(MODEL, _inputs(pixels, name="pixels")),
        "output": lambda: client.infer(MODEL, _inputs(pixels), outputs=_outputs("labels")),
        "too many": lambda: client.infer(MODEL, _inputs(np.repeat(pixels, 200, axis=0))),
        "model": lambda: client.infer("cats", _inputs(pixels)),
        "version": lambda: client.infer(MODEL, _inputs(pixels), model_version="2"),
        "picture": lambda: client.infer(MODEL, _files([b"no picture"], 1, 1)),
        "priority": lambda: client.infer(MODEL, _inputs(pixels), priority="high"),
        "region": lambda: client.get_system_shared_memory_status("nowhere"),
        "metadata": lambda: client.get_model_metadata("cats"),
        "statistics": lambda: client.get_inference_statistics("cats"),
    }
    return {name: outcome(make) for name, make in mistakes.items()}


if __name__ == "__main__":
    run(main)
