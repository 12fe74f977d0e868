"""`fuseline health`, which a container's health check runs."""

import os
from typing import Annotated

import typer


def health(
    address: Annotated[
        str | None,
        typer.Option(
            help="Where the server is, an address of gRPC or http://HOST:PORT; default: the first of FUSELINE_LISTEN, "
            "or this machine, FUSELINE_PORT or 8001."
        ),
    ] = None,
    service: Annotated[str, typer.Option(help="A gRPC service's full name; default: the whole server.")] = "",
    timeout_s: Annotated[float, typer.Option(min=0.001, help="How long to wait for the answer.")] = 3.0,
) -> None:
    """Ask a server over gRPC (grpc.health.v1) or HTTP whether it serves; the exit code is 0 if it says so, else 1."""
    from fuseline.serve.client.http_stub import is_http

    address = address or _servers_own_address()
    ask = _status_over_http if is_http(address) else _status
    status = ask(address, service, timeout_s)
    typer.echo(status)
    if status != "SERVING":
        raise typer.Exit(1)


def _status(address: str, service: str, timeout_s: float) -> str:
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    # A probe goes to this machine or this cluster, never through the proxy of `http_proxy`.
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=timeout_s)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            return f"no answer from {address}: {error.code().name}, {error.details()}"
    return str(HealthCheckResponse.ServingStatus.Name(answer.status))


def _status_over_http(address: str, service: str, timeout_s: float) -> str:
    from fuseline.serve.client.http_stub import HttpStub
    from fuseline.serve.errors import FuselineError

    if service:
        return "over HTTP the whole server is asked; --service is of gRPC"
    try:
        return "SERVING" if HttpStub(address).is_ready(timeout_s) else "NOT_SERVING"
    except FuselineError as error:
        return str(error)


def _servers_own_address() -> str:
    """Return where a server with this environment listens."""
    listened = os.environ.get("FUSELINE_LISTEN", "").split()
    return listened[0] if listened else f"127.0.0.1:{os.environ.get('FUSELINE_PORT', '8001')}"
