"""The context of a gRPC call as Fuseline's services know it, on what Ray's proxy tells of the call."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import grpc


class ProxyContext(Protocol):
    """What is used of `ray.serve.grpc_util.RayServegRPCContext`, which goes back to the proxy with an answer."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """Return the client's metadata."""
        ...

    def peer(self) -> str:
        """Return the client's address, as gRPC has it."""
        ...

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what the client's certificate says."""
        ...

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status of the call."""
        ...

    def set_details(self, details: str) -> None:
        """Set the message of the status."""
        ...

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None:
        """Set the metadata that go with the status."""
        ...


class CallEnded(Exception):  # noqa: N818 an end, which is raised to leave the service
    """The service has ended the call by a status, which its context has."""


class RpcContext:
    """Stands in for `grpc.aio.ServicerContext`: all of it that a service of Fuseline uses."""

    def __init__(self, proxied: ProxyContext, write: Callable[[Any], Awaitable[None]] | None = None) -> None:
        """Begin a call. `write` takes the messages of a stream; None: the call has one answer."""
        self._proxied = proxied
        self._write = write

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """Return the client's metadata."""
        return self._proxied.invocation_metadata()

    def time_remaining(self) -> None:
        """Return None: Ray's proxy doesn't tell the deadline. When it passes the proxy cancels the request."""

    def peer(self) -> str:
        """Return the client's address, as gRPC has it."""
        return self._proxied.peer()

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what the client's certificate says."""
        return self._proxied.auth_context()

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status with which the call ends."""
        self._proxied.set_code(code)

    def set_details(self, details: str) -> None:
        """Set the message of the status."""
        self._proxied.set_details(details)

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Set the metadata that go with the status."""
        self._proxied.set_trailing_metadata(list(metadata))

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> NoReturn:
        """End the call by a status. Raises `CallEnded`."""
        self.set_code(code)
        self.set_details(details)
        self.set_trailing_metadata(trailing_metadata)
        raise CallEnded(details or code.name)

    async def write(self, message: Any) -> None:
        """Send a message of a stream, once the one before is taken."""
        assert self._write is not None
        await self._write(message)
