"""`fuseline health`, which a container's health check runs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fuseline.serve.commands.client_flags import Tls, TlsCa, TlsCert, TlsKey, TlsServerName
from fuseline.serve.listening.unix_sockets import is_unix

if TYPE_CHECKING:
    from fuseline.serve.client.client_tls import ClientTls


def health(
    address: Annotated[
        str | None,
        typer.Option(
            help="Where the server is, an address of gRPC, http://HOST:PORT or https://HOST:PORT; default: the first "
            "of FUSELINE_LISTEN, or this machine, FUSELINE_PORT or 8001."
        ),
    ] = None,
    service: Annotated[str, typer.Option(help="A gRPC service's full name; default: the whole server.")] = "",
    timeout_s: Annotated[float, typer.Option(min=0.001, help="How long to wait for the answer.")] = 3.0,
    *,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_server_name: TlsServerName = None,
) -> None:
    """Ask a server over gRPC (grpc.health.v1) or HTTP whether it serves; the exit code is 0 if it says so, else 1.

    Without --address this machine's server is asked, over TLS if FUSELINE_TLS_CERT is set, as for the server itself;
    then that certificate is what is trusted, whatever its name.
    """
    from fuseline.serve.client.client_tls import client_tls
    from fuseline.serve.client.http_stub import is_http
    from fuseline.serve.client.own_server import own_server_tls
    from fuseline.serve.client.server_addresses import check_one

    own_certificate = None if address else os.environ.get("FUSELINE_TLS_CERT")
    address = address or _servers_own_address()
    check_one(address, "health is that of one server")
    if own_certificate and tls_ca is None and not is_unix(address):
        its = own_server_tls(address, Path(own_certificate), cert=tls_cert, key=tls_key, timeout_s=timeout_s)
    else:
        its = client_tls(address, tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key, server_name=tls_server_name)
    ask = _status_over_http if is_http(address) else _status
    status = ask(address, service, timeout_s, its)
    typer.echo(status)
    if status != "SERVING":
        raise typer.Exit(1)


def _status(address: str, service: str, timeout_s: float, tls: "ClientTls | None") -> str:
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    from fuseline.serve.client.calls import channel_to
    from fuseline.serve.client.tls_failures import found_tls_failure

    # A probe goes to this machine or this cluster, never through the proxy of `http_proxy`.
    with channel_to(address, tls, uses_proxy=False) as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=timeout_s)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            reason = found_tls_failure(address, tls) if error.code() is grpc.StatusCode.UNAVAILABLE else None
            return f"no answer from {address}: {reason or f'{error.code().name}, {error.details()}'}"
    return str(HealthCheckResponse.ServingStatus.Name(answer.status))


def _status_over_http(address: str, service: str, timeout_s: float, tls: "ClientTls | None") -> str:
    from fuseline.serve.client.http_stub import HttpStub
    from fuseline.serve.errors import FuselineError

    if service:
        return "over HTTP the whole server is asked; --service is of gRPC"
    try:
        return "SERVING" if HttpStub(address, tls).is_ready(timeout_s) else "NOT_SERVING"
    except FuselineError as error:
        return str(error)


def _servers_own_address() -> str:
    """Return where a server with this environment listens."""
    listened = os.environ.get("FUSELINE_LISTEN", "").split()
    return listened[0] if listened else f"127.0.0.1:{os.environ.get('FUSELINE_PORT', '8001')}"
