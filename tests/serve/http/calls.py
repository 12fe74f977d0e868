"""HTTP requests of tests, by the standard library's client, and infer requests for them."""

import asyncio
import http.client
import json
import ssl
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.serve.conftest import Served


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json", self.body
        return json.loads(self.body)

    @property
    def error(self) -> str:
        (message,) = self.json.values()
        assert list(self.json) == ["error"]
        return message


async def call(served: Served, method: str, path: str, body: bytes = b"", headers: Any = None) -> Answer:
    """The answer to one request on a connection of its own."""
    return await asyncio.to_thread(_call, served.server.http_port, method, path, body, headers or {})


def _call(port: int, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


async def call_over_tls(served: Served, context: ssl.SSLContext, head: str) -> bytes:
    """All that is answered to a request of that head on a connection of its own, which the answer closes."""
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("localhost", served.server.http_port, ssl=context)
        writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.transport.abort()
    return answer


async def get(served: Served, path: str) -> Answer:
    return await call(served, "GET", path)


async def post_json(served: Served, path: str, value: object) -> Answer:
    return await call(served, "POST", path, json.dumps(value).encode())


def json_tensor(pixels: NDArray[np.uint8], **changes: object) -> dict[str, object]:
    """The input of `pixels` (rows, height, width, channels), its elements flat."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    return tensor | changes


def binary_body(pixels: NDArray[np.uint8], **members: object) -> tuple[bytes, dict[str, str]]:
    """A body with `pixels` as binary data, and its headers."""
    tensor = json_tensor(pixels, parameters={"binary_data_size": pixels.nbytes})
    del tensor["data"]
    text = json.dumps({"inputs": [tensor]} | members).encode()
    return text + pixels.tobytes(), {"Inference-Header-Content-Length": str(len(text))}


def logits_of(answer: Answer) -> NDArray[np.float32]:
    """The logits (rows, classes) of an answer, which must hold nothing else."""
    assert answer.status == 200, answer.body
    length = answer.headers["Inference-Header-Content-Length"]
    text = answer.body if length is None else answer.body[: int(length)]
    (output,) = json.loads(text)["outputs"]
    assert (output["name"], output["datatype"]) == ("logits", "FP32")
    if length is None:
        assert answer.headers["content-type"] == "application/json"
        return np.array(output["data"], np.float32).reshape(output["shape"])
    assert answer.headers["content-type"] == "application/octet-stream"
    raw = answer.body[int(length) :]
    assert output["parameters"]["binary_data_size"] == len(raw)
    return np.frombuffer(raw, "<f4").reshape(output["shape"])
