"""The server of this machine, which its own health check calls by the certificate that it shows, whatever its names."""

import socket
import ssl
from pathlib import Path

from fuseline.serve.client.client_tls import ClientTls, client_tls
from fuseline.serve.client.tls_failures import host_and_port
from fuseline.serve.errors import InputError


def own_server_tls(
    address: str, certificate: Path, *, cert: Path | None, key: Path | None, timeout_s: float
) -> ClientTls | None:
    """Return the TLS that reaches the server at `address` which shows `certificate`, a file in PEM, and no other one.

    A health check asks for 127.0.0.1, which a certificate rarely names; so it is asked for the first name that it has.

    Raises:
        InputError: a file can't be used.
    """
    pinned = client_tls(address, ca=certificate, cert=cert, key=key)
    assert pinned is not None
    name = _name_shown_at(address, pinned.context, timeout_s)
    return client_tls(address, ca=certificate, cert=cert, key=key, server_name=name)


def _name_shown_at(address: str, context: ssl.SSLContext, timeout_s: float) -> str | None:
    """Return a name of the certificate at `address`, which must be one of those that `context` trusts."""
    if (its := host_and_port(address)) is None:
        raise InputError(f"{address!r} is no address of this machine's server; give --address HOST:PORT")
    context.check_hostname = False
    try:
        with (
            socket.create_connection(its, timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=its[0]) as encrypted,
        ):
            described = encrypted.getpeercert() or {}
    except OSError:
        return None  # the call itself will say why
    # typeshed describes the value as anything that any of the fields has.
    names = [str(pair[1]) for pair in described.get("subjectAltName", ()) if pair[0] in {"DNS", "IP Address"}]
    return names[0].replace("*", "any") if names else None
