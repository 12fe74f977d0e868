"""Flags of the commands that call a server."""

from pathlib import Path
from typing import Annotated, Any

import typer

_CLIENT_TLS = "FUSELINE_CLIENT_TLS"
"""Begin of the environment variables: those that begin with FUSELINE_TLS are the server's."""

Tls = Annotated[
    bool, typer.Option("--tls", envvar=_CLIENT_TLS, help="Use TLS; the flags below do that too, and so does https://.")
]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca", envvar=f"{_CLIENT_TLS}_CA", help="Certificates to trust, in PEM; default: those of this machine."
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert", envvar=f"{_CLIENT_TLS}_CERT", help="Your own certificate, in PEM, where the server wants one."
    ),
]
TlsKey = Annotated[
    Path | None, typer.Option("--tls-key", envvar=f"{_CLIENT_TLS}_KEY", help="Private key of --tls-cert, in PEM.")
]
TlsServerName = Annotated[
    str | None,
    typer.Option(
        "--tls-server-name",
        envvar=f"{_CLIENT_TLS}_SERVER_NAME",
        help="Name that the server's certificate must have; default: the host of the address.",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="FUSELINE_TOKEN_FILE",
        help="File with the token to send; default: the variable FUSELINE_TOKEN, if it is set.",
    ),
]
TokenInClear = Annotated[
    bool,
    typer.Option(
        "--token-in-clear",
        envvar="FUSELINE_TOKEN_IN_CLEAR",
        help="Send the token to another machine even over a plain connection.",
    ),
]


def connection_from_flags(token_file: Path | None, token_in_clear: bool, **tls: Any) -> dict[str, Any]:
    """Return the keywords of `Client` that the flags come to; `tls` are those of TLS. Raises `InputError`."""
    from fuseline.serve.client.client_token import token_in_file

    token = None if token_file is None else token_in_file(token_file)
    return {"token": token, "token_in_clear": token_in_clear, **tls}
