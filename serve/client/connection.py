"""What a client was told about its servers and how it connects to them, checked once for all of them."""

from dataclasses import dataclass, field, replace

from fuseline.serve.client.client_tls import ClientTls, FilePath, client_tls
from fuseline.serve.client.client_token import token_for
from fuseline.serve.client.http_stub import is_http
from fuseline.serve.client.server_addresses import Addresses, Target, targets_of
from fuseline.serve.errors import InputError


@dataclass(frozen=True, slots=True)
class Connection:
    """Servers, whom to trust there, and who one is."""

    targets: tuple[Target, ...]
    tls: ClientTls | None
    token: str | None = field(repr=False)

    @property
    def address(self) -> str:
        """The addresses, for people."""
        return ", ".join(target.address for target in self.targets)

    @property
    def is_of_one(self) -> bool:
        """Whether there is one server, now and later."""
        return len(self.targets) == 1 and self.targets[0].name is None

    @property
    def is_http(self) -> bool:
        """Whether the servers are called over HTTP."""
        return is_http(self.targets[0].address)

    def tls_of(self, target: Target) -> ClientTls | None:
        """Return the TLS of a connection to an address of `target`, whose certificate has the target's name."""
        if self.tls is None or target.name is None or self.tls.server_name is not None:
            return self.tls
        return replace(self.tls, server_name=target.name[0])


def connection_to(
    addresses: Addresses,
    *,
    token: str | None,
    token_in_clear: bool,
    tls: bool,
    ca: FilePath | None,
    cert: FilePath | None,
    key: FilePath | None,
    server_name: str | None,
) -> Connection:
    """Return how `addresses` are connected to.

    Raises:
        InputError: an address can't be used, or a file; or the token would leave this machine in clear to any of them.
    """
    targets = targets_of(addresses)
    each_tls = [
        client_tls(target.address, tls=tls, ca=ca, cert=cert, key=key, server_name=server_name) for target in targets
    ]
    for target in targets:
        token = token_for(target.address, token, is_encrypted=each_tls[0] is not None, in_clear=token_in_clear)
    return Connection(targets, each_tls[0], token)


def check_hedge(hedge_after_s: float | None, connection: Connection) -> None:
    """Raise `InputError` where no copy of a request can be sent, or not after so many seconds."""
    if hedge_after_s is None:
        return
    # A NaN is not above 0.
    if not hedge_after_s > 0:
        raise InputError(f"hedge_after_s is {hedge_after_s:g}; give the seconds after which a copy is sent, above 0")
    if connection.is_http:
        raise InputError(
            "hedge_after_s needs addresses of gRPC: over HTTP a request that isn't needed can't be withdrawn"
        )
    if connection.is_of_one:
        raise InputError(
            f"hedge_after_s needs a second server, to which a copy is sent; {connection.address} is one server. Give "
            "several addresses, or dns:///NAME:PORT"
        )
