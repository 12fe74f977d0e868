"""`fuseline models list|load|unload`: the models of a running server."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fuseline.serve.commands.client_flags import (
    Tls,
    TlsCa,
    TlsCert,
    TlsKey,
    TlsServerName,
    TokenFile,
    TokenInClear,
    connection_from_flags,
)

if TYPE_CHECKING:
    from fuseline.serve.client.model_control import ModelControlClient

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="List, load and unload the models of a running server."
)

_Address = Annotated[
    str,
    typer.Option(envvar="FUSELINE_ADDRESS", help="Where the server is, an address of gRPC or http://HOST:PORT."),
]
_Names = Annotated[list[str], typer.Argument(metavar="MODEL", help="Names of models in the server's repository.")]
_TimeoutS = Annotated[float | None, typer.Option(min=0.001, help="How long to wait for each; default: to the end.")]
_DEFAULT_ADDRESS = "127.0.0.1:8001"


@app.command("list")
def list_models(
    address: _Address = _DEFAULT_ADDRESS,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line for each version.")] = False,
    token_file: TokenFile = None,
    token_in_clear: TokenInClear = False,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_server_name: TlsServerName = None,
) -> None:
    """List every version that the server knows: whether it takes requests, and if not, why."""
    connection = connection_from_flags(
        token_file, token_in_clear, tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key, server_name=tls_server_name
    )
    with _server(address, **connection) as server:
        versions = server.list()
    if as_json:
        for each in versions:
            typer.echo(json.dumps(each._asdict()))
        return
    rows = [(each.name, each.version or "-", each.state, each.reason) for each in versions]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        typer.echo("  ".join([*cells, row[3]]).rstrip())


@app.command()
def load(
    names: _Names,
    address: _Address = _DEFAULT_ADDRESS,
    timeout_s: _TimeoutS = None,
    token_file: TokenFile = None,
    token_in_clear: TokenInClear = False,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_server_name: TlsServerName = None,
) -> None:
    """Load models, or what their folders have now; return once they take requests.

    A package that is refused changes nothing: what was served is served still, and the exit code is 1.
    """
    connection = connection_from_flags(
        token_file, token_in_clear, tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key, server_name=tls_server_name
    )
    with _server(address, **connection) as server:
        for name in names:
            server.load(name, timeout_s=timeout_s)
            typer.echo(f"{name}: loaded")


@app.command()
def unload(
    names: _Names,
    address: _Address = _DEFAULT_ADDRESS,
    timeout_s: _TimeoutS = None,
    token_file: TokenFile = None,
    token_in_clear: TokenInClear = False,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_server_name: TlsServerName = None,
) -> None:
    """Unload models; return once they have answered their last requests."""
    connection = connection_from_flags(
        token_file, token_in_clear, tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key, server_name=tls_server_name
    )
    with _server(address, **connection) as server:
        for name in names:
            server.unload(name, timeout_s=timeout_s)
            typer.echo(f"{name}: unloaded")


@contextmanager
def _server(address: str, token: str | None, token_in_clear: bool, **tls: Any) -> "Iterator[ModelControlClient]":
    from fuseline.serve.client.client_tls import client_tls
    from fuseline.serve.client.model_control import model_control

    with model_control(address, client_tls(address, **tls), token, token_in_clear=token_in_clear) as server:
        yield server
