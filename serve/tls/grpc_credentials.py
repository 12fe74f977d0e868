"""A certificate as gRPC takes it, which has a TLS of its own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, cast

import grpc

from fuseline.serve.errors import InputError
from fuseline.serve.tls.certificate import Certificate


class HasCurrent(Protocol):
    """What holds the certificate of the present moment."""

    current: Certificate


def server_credentials(certificates: HasCurrent) -> grpc.ServerCredentials:
    """Return the credentials of one port, which shows the certificate that is current at each handshake.

    Connections that are open stay as they are. Each port needs credentials of its own: gRPC asks for what has changed
    since it asked last.
    """
    given = certificates.current

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        if certificates.current is given:
            return None
        given = certificates.current
        return _configuration(given)

    return _dynamic(given, changed)


def check_grpc_takes(certificate: Certificate, files: str) -> None:
    """Raise `InputError` if gRPC can't use `certificate`, which it tells only when a port is bound.

    Its TLS knows fewer kinds of keys than Python's does.
    """
    server = grpc.server(ThreadPoolExecutor(1))
    try:
        server.add_secure_port("127.0.0.1:0", _dynamic(certificate, lambda: None))
    except RuntimeError as error:
        raise InputError(
            f"{files}: gRPC can't use them, although they fit each other; make a key of 2048 bits RSA or on the curve "
            "P-256 or P-384"
        ) from error
    finally:
        server.stop(None)


def _dynamic(
    first: Certificate, changed: Callable[[], grpc.ServerCertificateConfiguration | None]
) -> grpc.ServerCredentials:
    # The stubs don't know that None stands for no change.
    fetch = cast(Callable[[], grpc.ServerCertificateConfiguration], changed)
    return grpc.dynamic_ssl_server_credentials(
        _configuration(first), fetch, require_client_authentication=first.client_ca_pem is not None
    )


def _configuration(certificate: Certificate) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificate.key_pem, certificate.chain_pem)], root_certificates=certificate.client_ca_pem
    )
