"""gRPC's side of one call, without a connection."""

import asyncio

import grpc


class ServicerContext:
    """What a service uses of `grpc.aio.ServicerContext`, and what was written to it."""

    def __init__(self) -> None:
        self.written: list[object] = []
        self.may_write = asyncio.Event()
        """A write waits for it, as for a client that takes no more answers."""
        self.may_write.set()

    def time_remaining(self) -> None:
        return None

    async def write(self, message: object) -> None:
        self.written.append(message)
        await asyncio.sleep(0)
        await self.may_write.wait()

    def peer(self) -> str:
        """Return a peer's name, as gRPC writes it."""
        return "ipv4:127.0.0.1:50000"

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Return no metadata."""
        return ()

    def auth_context(self) -> dict[str, list[bytes]]:
        """Return that of a connection without TLS."""
        return {}

    async def abort(self, code: grpc.StatusCode, details: str, *_: object) -> None:
        raise grpc.aio.AbortError(code, details)
