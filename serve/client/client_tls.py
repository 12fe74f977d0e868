"""How a client uses TLS: whom it trusts, and who it is."""

import ssl
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import grpc

from fuseline.serve.errors import InputError
from fuseline.serve.listening.unix_sockets import is_unix

FilePath = str | PathLike[str]


@dataclass(frozen=True, slots=True)
class ClientTls:
    """TLS of a client's connections, with files that were read once and found usable."""

    ca_pem: bytes | None
    """Certificates that are trusted; None: those that this machine trusts."""
    certificate_pem: bytes | None
    key_pem: bytes | None = field(repr=False)
    server_name: str | None
    """Name that the server's certificate must have; None: the host of the address."""
    context: ssl.SSLContext
    """The same for Python's TLS."""

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return the same for gRPC."""
        return grpc.ssl_channel_credentials(self.ca_pem or _trusted_here(), self.key_pem, self.certificate_pem)

    def channel_options(self) -> list[tuple[str, str]]:
        """Return the further options that a gRPC connection needs."""
        return [] if self.server_name is None else [("grpc.ssl_target_name_override", self.server_name)]


def client_tls(
    address: str,
    *,
    tls: bool = False,
    ca: FilePath | None = None,
    cert: FilePath | None = None,
    key: FilePath | None = None,
    server_name: str | None = None,
) -> ClientTls | None:
    """Return the TLS of connections to `address`; None: they are plain.

    TLS is used with `tls`, with any of the files, or a `server_name`, and for https:// in any case.

    Raises:
        InputError: a file can't be read or is no PEM, `cert` and `key` don't fit, one is missing, or the address is one
            of plain HTTP or of a Unix socket.
    """
    scheme = address.partition("://")[0].lower() if "://" in address else ""
    asked = tls or server_name is not None or any(file is not None for file in (ca, cert, key))
    if not asked and scheme != "https":
        return None
    if scheme == "http":
        raise InputError(f"{address} is an address of plain HTTP; with TLS it begins with https://")
    if is_unix(address):
        raise InputError(f"{address} is a Unix socket, which has no TLS and needs none; leave TLS out")
    if (cert is None) != (key is None):
        raise InputError("a client's certificate was given without its key, or the key alone; give cert and key both")
    ca_pem = None if ca is None else _bytes_of(ca)
    certificate_pem, key_pem = (None, None) if cert is None or key is None else (_bytes_of(cert), _bytes_of(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1" if scheme else "h2"])
    # As gRPC does it: a certificate that is trusted by itself needs no chain to a root.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if ca_pem is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(cadata=ca_pem.decode("ascii", "replace"))
        except (ssl.SSLError, ValueError) as error:
            raise InputError(f"{ca} holds no certificate in PEM to trust") from error
    if cert is not None and key is not None:
        try:
            context.load_cert_chain(cert, key, password=_no_passphrase)
        except ssl.SSLError as error:
            raise InputError(
                f"{cert} and {key} are no certificate and its key in PEM ({error.reason or 'damaged'}); give the two "
                "that were made together"
            ) from error
    return ClientTls(ca_pem, certificate_pem, key_pem, server_name, context)


def _bytes_of(path: FilePath) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({getattr(error, 'strerror', None) or error})") from error


def _no_passphrase() -> str:
    raise InputError("the client's key is encrypted, and nobody is asked for its passphrase; give one that is not")


def _trusted_here() -> bytes | None:
    """Return the certificates that this machine trusts, which gRPC doesn't look at by itself; None: there is no file.

    The environment variable SSL_CERT_FILE names another file, as for other programs.
    """
    path = ssl.get_default_verify_paths().cafile
    try:
        return Path(path).read_bytes() or None if path is not None else None
    except OSError:
        return None
