"""Loads, unloads and lists the models of a running server."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from fuseline.protos.open_inference_pb2 import (
    RepositoryIndexRequest,
    RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest,
)
from fuseline.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fuseline.serve.client.calls import channel_to, errors_of_the_tree
from fuseline.serve.client.client_tls import ClientTls
from fuseline.serve.client.client_token import metadata_with, token_for
from fuseline.serve.client.http_control_stub import HttpControlStub
from fuseline.serve.client.http_stub import is_http
from fuseline.serve.client.server_addresses import check_one


class ListedVersion(NamedTuple):
    """One version of a model, as the server lists it."""

    name: str
    version: str
    """Version; empty for a model none of whose versions is known to the server."""
    state: str
    """`READY`, `LOADING`, `UNLOADING` or `UNAVAILABLE`."""
    reason: str


class ModelControlClient:
    """A connection to a server, by its gRPC or HTTP address, for whoever changes its models.

    Methods raise the error of `fuseline.serve.errors` that the server raised, and `InputError` where no server answers.
    """

    def __init__(self, address: str, stub: Any, tls: ClientTls | None, **extra: Any) -> None:
        """Call the server at `address` by `stub`, each of whose methods takes `extra` too."""
        self._address = address
        self._stub = stub
        self._tls = tls
        self._extra = extra

    def list(self, *, timeout_s: float | None = 10.0) -> list[ListedVersion]:
        """Return every version that the server knows."""
        with errors_of_the_tree(self._address, timeout_s, self._tls):
            index = self._stub.RepositoryIndex(RepositoryIndexRequest(), timeout=timeout_s, **self._extra)
        return [ListedVersion(each.name, each.version, each.state, each.reason) for each in index.models]

    def load(self, name: str, *, timeout_s: float | None = None) -> None:
        """Load the model called `name`, or what its folder has now; return once it takes requests."""
        with errors_of_the_tree(self._address, timeout_s, self._tls):
            request = RepositoryModelLoadRequest(model_name=name)
            self._stub.RepositoryModelLoad(request, timeout=timeout_s, **self._extra)

    def unload(self, name: str, *, timeout_s: float | None = None) -> None:
        """Unload the model called `name`; return once it has answered its last request."""
        with errors_of_the_tree(self._address, timeout_s, self._tls):
            request = RepositoryModelUnloadRequest(model_name=name)
            self._stub.RepositoryModelUnload(request, timeout=timeout_s, **self._extra)


@contextmanager
def model_control(
    address: str, tls: ClientTls | None = None, token: str | None = None, *, token_in_clear: bool = False
) -> Iterator[ModelControlClient]:
    """Yield a connection to the server at `address`, `HOST:PORT` of gRPC or `http://HOST:PORT`, by `tls` if given.

    `token` and `token_in_clear` are as for `Client`. Raises `InputError` for a token that must not be sent there.
    """
    check_one(address, "models are loaded and listed server by server")
    token = token_for(address, token, is_encrypted=tls is not None, in_clear=token_in_clear)
    if is_http(address):
        stub = HttpControlStub(address, tls, token)
        try:
            yield ModelControlClient(address, stub, tls)
        finally:
            stub.close()
        return
    with channel_to(address, tls) as channel:
        its_stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        yield ModelControlClient(address, its_stub, tls, metadata=metadata_with(token))
