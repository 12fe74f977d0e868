"""The floor of a Python gRPC server: grpc.aio that answers 40 bytes to any bytes, without protobuf or a model.

`python -m fuseline.benchmarks.peers.echo_server` takes a free loopback port and says which. /echo.Echo/Echo answers a
call, /echo.Echo/Stream each message of a bidirectional stream. It runs on asyncio's own event loop, as grpc.aio does
unless a program chooses another.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from fuseline.benchmarks.harness.grpc_process import serve_until_sigterm

ECHO = "/echo.Echo/Echo"
ECHO_STREAM = "/echo.Echo/Stream"
_REPLY = bytes(40)


async def _echo(_: bytes, __: Any) -> bytes:
    return _REPLY


async def _echo_stream(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
    async for _request in requests:
        yield _REPLY


async def _main() -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    methods = {
        "Echo": grpc.unary_unary_rpc_method_handler(_echo),
        "Stream": grpc.stream_stream_rpc_method_handler(_echo_stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo.Echo", methods),))
    await serve_until_sigterm(server, "127.0.0.1:0")


if __name__ == "__main__":
    asyncio.run(_main())
