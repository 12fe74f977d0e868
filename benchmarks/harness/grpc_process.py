"""The life of a benchmark's own gRPC server, in a process of its own."""

import asyncio
import signal

import grpc.aio


async def serve_until_sigterm(server: grpc.aio.Server, address: str) -> None:
    """Listen on `address` (HOST:PORT, 0 for a free port), print the one that is taken, and stop at SIGTERM."""
    port = server.add_insecure_port(address)
    await server.start()
    print(f"{address.rpartition(':')[0]}:{port}", flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await server.stop(0)
