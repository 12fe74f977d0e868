"""Run by the Python of .venv-tritonclient: calls with a bearer token, by tritonclient's four clients.

Started as its siblings are, on a folder that has the token in `token` too.
"""

import asyncio
import queue
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from triton_common import MODEL, awaited, logits_of, outcome, run
from tritonclient.utils import InferenceServerException

# Copied for each call: some of the clients add to what they are given.
HEADERS = {"authorization": f"Bearer {(Path(sys.argv[3]) / 'token').read_text()}"}


def main(address: str, http_address: str, pixels: Any, _: list[bytes]) -> dict[str, Any]:
    with triton.InferenceServerClient(address) as grpc, triton_http.InferenceServerClient(http_address) as http:
        return {
            "live": [grpc.is_server_live(), grpc.is_server_ready(), http.is_server_live(), http.is_server_ready()],
            "with": {
                "grpc": outcome(lambda: logits_of(grpc.infer(MODEL, _tensor(triton, pixels), headers=dict(HEADERS)))),
                "http": outcome(
                    lambda: logits_of(http.infer(MODEL, _tensor(triton_http, pixels), headers=dict(HEADERS)))
                ),
                "grpc asyncio": asyncio.run(_asyncio(triton_aio, address, pixels)),
                "http asyncio": asyncio.run(_asyncio(triton_http_aio, http_address, pixels)),
                "stream": _stream(grpc, pixels, dict(HEADERS)),
            },
            "without": {
                "grpc": outcome(lambda: grpc.infer(MODEL, _tensor(triton, pixels))),
                "http": outcome(lambda: http.infer(MODEL, _tensor(triton_http, pixels))),
                "stream": _stream(grpc, pixels, None),
            },
            "beyond the role": {
                "grpc": outcome(lambda: grpc.update_log_settings({"log_verbose_level": 1}, headers=dict(HEADERS))),
                "http": outcome(lambda: http.update_log_settings({"log_verbose_level": 1}, headers=dict(HEADERS))),
                "grpc memory": outcome(lambda: grpc.get_system_shared_memory_status(headers=dict(HEADERS))),
                "http memory": outcome(lambda: http.get_system_shared_memory_status(headers=dict(HEADERS))),
            },
        }


def _tensor(module: Any, array: Any) -> list[Any]:
    tensor = module.InferInput("image", list(array.shape), "UINT8")
    tensor.set_data_from_numpy(array)
    return [tensor]


async def _asyncio(module: Any, address: str, pixels: Any) -> Any:
    client = module.InferenceServerClient(address)
    try:
        answer = await awaited(client.infer(MODEL, _tensor(module, pixels), headers=dict(HEADERS)))
        return answer if isinstance(answer, dict) else logits_of(answer)
    finally:
        await client.close()


def _stream(client: Any, pixels: Any, headers: Any) -> Any:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error if result is None else result), headers=headers)
    # A stream that is refused already says so here too.
    with suppress(InferenceServerException):
        client.async_stream_infer(MODEL, _tensor(triton, pixels))
    answer = answers.get(timeout=30)
    client.stop_stream()
    return str(answer) if isinstance(answer, Exception) else logits_of(answer)


if __name__ == "__main__":
    run(main)
