"""`python -m tests.faults.dying_client GRPC HTTP [--never-read]`: a client to be killed in the middle of its streams.

Its bodies over HTTP are half sent. It says `busy` as each stream answers. With `--never-read` it reads no answer, and
asks over HTTP, too, for more than it ever takes.
"""

import asyncio
import socket
import sys

import grpc
import numpy as np

from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.fakes.colours import noise
from tests.serve.services.classify_requests import raw_request
from tests.serve.services.open_inference_requests import infer_request

STREAMS = 4


HALF_A_BODY = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(50_000)
PIPELINED = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 64


async def main(grpc_address: str, http_address: str, never: str = "") -> None:
    host, _, port = http_address.rpartition(":")
    loop, connections = asyncio.get_running_loop(), []
    for _ in range(STREAMS):
        connections.append(socket.create_connection((host, int(port))))
        connections[-1].setblocking(False)
        await loop.sock_sendall(connections[-1], b"" if never else HALF_A_BODY)
    async with grpc.aio.insecure_channel(grpc_address) as channel:
        classify = [ClassifierStub(channel).ClassifyStream() for _ in range(STREAMS)]
        infer = [GRPCInferenceServiceStub(channel).ModelStreamInfer() for _ in range(STREAMS)]
        pictures: np.ndarray = noise(8)

        async def send(stream: grpc.aio.StreamStreamCall, request: object) -> None:
            while True:
                await stream.write(request)

        async def ask_for_more(connection: socket.socket) -> None:
            while True:
                await loop.sock_sendall(connection, PIPELINED)

        async def read(stream: grpc.aio.StreamStreamCall) -> None:
            await stream.read()
            print("busy", flush=True)
            while True:
                await stream.read()

        reading = map(ask_for_more, connections) if never else map(read, (*classify, *infer))
        await asyncio.gather(
            *(send(stream, raw_request(pictures)) for stream in classify),
            *(send(stream, infer_request(pictures)) for stream in infer),
            *reading,
        )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
