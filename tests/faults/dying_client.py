"""`python -m tests.faults.dying_client GRPC HTTP`: a client to be killed, with streams and bodies half sent.

It says `busy` once answers come on its streams.
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


async def main(grpc_address: str, http_address: str) -> None:
    host, _, port = http_address.rpartition(":")
    halves = [socket.create_connection((host, int(port))) for _ in range(STREAMS)]
    for half in halves:
        half.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(50_000))
    async with grpc.aio.insecure_channel(grpc_address) as channel:
        classify = [ClassifierStub(channel).ClassifyStream() for _ in range(STREAMS)]
        infer = [GRPCInferenceServiceStub(channel).ModelStreamInfer() for _ in range(STREAMS)]
        pictures: np.ndarray = noise(8)

        async def send(stream: grpc.aio.StreamStreamCall, request: object) -> None:
            while True:
                await stream.write(request)

        async def read(stream: grpc.aio.StreamStreamCall) -> None:
            await stream.read()
            print("busy", flush=True)
            while True:
                await stream.read()

        await asyncio.gather(
            *(send(stream, raw_request(pictures)) for stream in classify),
            *(send(stream, infer_request(pictures)) for stream in infer),
            *map(read, (*classify, *infer)),
        )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
