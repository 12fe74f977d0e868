"""Run by the Python of .venv-kserve: drives a server with the clients of KServe's SDK.

`python kserve_calls.py GRPC HTTP FOLDER`, as `triton_common` describes; prints what it saw as one JSON object.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

MODEL = "colours"


async def main(grpc_address: str, http_address: str, pixels: Any, files: list[bytes]) -> dict[str, Any]:
    rest, base = InferenceRESTClient(RESTConfig(protocol="v2")), f"http://{http_address}"
    async with InferenceGRPCClient(grpc_address) as client:

        async def by_rest(request: InferRequest) -> list[list[float]]:
            return _logits(await rest.infer(base, request, MODEL))

        async def by_grpc(request: InferRequest) -> list[list[float]]:
            return _logits(await client.infer(request))

        seen = {
            "rest": {
                "live": await rest.is_server_live(base),
                "ready": await rest.is_server_ready(base),
                "model ready": await rest.is_model_ready(base, MODEL),
                "unknown model ready": await rest.is_model_ready(base, "cats"),
            },
            "grpc": {
                "live": await client.is_server_live(),
                "ready": await client.is_server_ready(),
                "model ready": await client.is_model_ready(MODEL),
                "unknown model ready": await client.is_model_ready("cats"),
            },
            "logits": {
                "REST, JSON": await _outcome(by_rest(_request(pixels, binary=False))),
                "REST, binary": await _outcome(by_rest(_request(pixels, binary=True))),
                "REST, binary both ways": await _outcome(by_rest(_request(pixels, binary=True, binary_out=True))),
                "REST, a plain dictionary": await _outcome(by_rest(_as_dictionary(pixels))),
                "gRPC, raw": await _outcome(by_grpc(_request(pixels, binary=True))),
                "gRPC, contents": await _outcome(by_grpc(_request(pixels, binary=False))),
            },
            "files": {
                "REST": await _outcome(by_rest(_files(files))),
                "gRPC": await _outcome(by_grpc(_files(files))),
            },
            "refused": {
                "REST": await _outcome(by_rest(_request(pixels, binary=False, name="pixels"))),
                "gRPC": await _outcome(by_grpc(_request(pixels, binary=True, name="pixels"))),
            },
        }
    await rest.close()
    return seen


def _request(pixels: Any, *, binary: bool, binary_out: bool = False, name: str = "image") -> InferRequest:
    tensor = InferInput(name, list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    outputs = [RequestedOutput("logits", {"binary_data": True})] if binary_out else None
    return InferRequest(MODEL, [tensor], request_id="mine", request_outputs=outputs)


def _as_dictionary(pixels: Any) -> dict[str, Any]:
    tensor = {"name": "image", "shape": list(pixels.shape), "datatype": "UINT8", "data": pixels.tolist()}
    return {"inputs": [tensor]}


def _files(files: list[bytes]) -> InferRequest:
    elements = np.empty((len(files), 1), np.object_)
    elements[:, 0] = files
    tensor = InferInput("image", [len(files), 1], "BYTES")
    tensor.set_data_from_numpy(elements, binary_data=True)
    return InferRequest(MODEL, [tensor], request_id="mine")


def _logits(response: Any) -> list[list[float]]:
    (output,) = response.outputs
    assert (output.name, output.datatype) == ("logits", "FP32")
    return output.as_numpy().tolist()


async def _outcome(coroutine: Any) -> Any:
    try:
        return await coroutine
    except httpx.HTTPStatusError as error:
        return {"status": str(error.response.status_code), "message": str(error)}
    except grpc.aio.AioRpcError as error:
        return {"status": str(error.code()), "message": error.details()}


if __name__ == "__main__":
    folder = Path(sys.argv[3])
    encoded = [path.read_bytes() for path in sorted((folder / "files").iterdir())]
    json.dump(asyncio.run(main(*sys.argv[1:3], np.load(folder / "pixels.npy"), encoded)), sys.stdout)
