"""`fuseline token new`: a token for a client, and its line for the server's file of hashes."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from fuseline.serve.access.roles import Role
from fuseline.serve.access.token_file import add_line, new_token, token_line

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def token() -> None:
    """Make tokens for the clients of a server that runs with --token-hashes."""


@app.command()
def new(
    name: Annotated[str, typer.Option(help="Who gets the token; limits, queues and metrics know the client by it.")],
    role: Annotated[
        str,
        typer.Option(
            help="infer, or admin, which may also load and unload models, register shared memory and change settings."
        ),
    ] = Role.INFER,
    file: Annotated[
        Path | None, typer.Option(help="The server's file of token hashes, to which the token's line is added.")
    ] = None,
    expires_days: Annotated[
        float | None, typer.Option(min=0.001, max=36_500, help="Days until the token expires; default: never.")
    ] = None,
) -> None:
    """Print a new token to stdout, once: nothing keeps it but you. The file gets its hash; without one stderr does.

    A running server takes it within seconds.
    """
    made = new_token()
    expires = (
        None if expires_days is None else (datetime.now(UTC) + timedelta(days=expires_days)).replace(microsecond=0)
    )
    line = token_line(made, name=name, role=role, expires=expires)
    if file is None:
        typer.echo(f"line for the file of --token-hashes: {line}", err=True)
    else:
        add_line(file, line)
    typer.echo(made)
