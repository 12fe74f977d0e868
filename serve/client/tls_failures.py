"""Why TLS with a server fails, and what to do about it.

gRPC says of most failures only that the connection was closed, so the reason is looked for by a handshake of Python's
own TLS, which sends nothing more.
"""

import re
import socket
import ssl
from contextlib import suppress

from fuseline.serve.client.client_tls import ClientTls

_CONNECT_S = 2.0
_LISTEN_S = 1.0
"""How long a server may take to refuse a client's certificate after the handshake (TLS 1.3)."""
_PORT = re.compile(r"(?:dns:(?:///)?|ipv4:|ipv6:)?(\[[^\]]+\]|[^:/\[\]]+):([0-9]{1,5})", re.ASCII)
_NAME_MISMATCH = {62, 64}
_EXPIRED, _NOT_YET_VALID = 10, 9
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")
_WANTS_CERTIFICATE = ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE")
_GIVE_CERTIFICATE = (
    "the server wants a certificate of its clients; give cert and key (--tls-cert, --tls-key) of one that it trusts"
)

_GIVE_ANOTHER = "give one that is valid and signed by what the server has as --tls-client-ca"
_GIVE_TLS = "the server speaks TLS there; give tls=True (--tls), or ca (--tls-ca) where its certificate is your own"


def tls_failure(error: BaseException, tls: ClientTls | None) -> str | None:
    """Return why a handshake, or the first read after it, failed by `error`; None: not because of TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _distrust(error)
    if not isinstance(error, ssl.SSLError):
        return None
    reason = error.reason or ""
    if reason in _NO_TLS:
        return "the server speaks no TLS there; leave TLS out, or give the port that has it"
    has_certificate = tls is not None and tls.certificate_pem is not None
    if reason in _WANTS_CERTIFICATE and not has_certificate:
        return _GIVE_CERTIFICATE
    if "ALERT" in reason and has_certificate:
        return f"the server refuses the client's certificate ({reason}); {_GIVE_ANOTHER}"
    return f"TLS failed ({reason or type(error).__name__})"


def found_tls_failure(address: str, tls: ClientTls | None) -> str | None:
    """Return why a connection of gRPC to `address` fails, as far as that is for TLS or its absence; None: it is not.

    It connects, for a few seconds at most.
    """
    if (its := host_and_port(address)) is None:
        return None
    host, _ = its
    context = tls.context if tls is not None else _trusting_context()
    try:
        with socket.create_connection(its, _CONNECT_S) as plain:
            name = host if tls is None or tls.server_name is None else tls.server_name
            with context.wrap_socket(plain, server_hostname=name) as encrypted:
                if tls is None:
                    return _GIVE_TLS
                return _refusal(encrypted, tls)
    except ssl.SSLError as error:
        if tls is None:
            return _GIVE_TLS if "ALERT" in (error.reason or "") else None
        return tls_failure(error, tls)
    except OSError:
        return None


def host_and_port(address: str) -> tuple[str, int] | None:
    """Return the host and the port of an address of gRPC; None: it is of another kind, or has no port."""
    found = _PORT.fullmatch(address)
    return None if found is None else (found[1].strip("[]"), int(found[2]))


def _refusal(encrypted: ssl.SSLSocket, tls: ClientTls) -> str | None:
    encrypted.settimeout(_LISTEN_S)
    ended = False
    with suppress(TimeoutError):
        try:
            ended = not encrypted.recv(1)
        except ConnectionError:
            ended = True
    if not ended:
        return None
    if tls.certificate_pem is None:
        return _GIVE_CERTIFICATE
    return f"the server refuses the client's certificate, as far as one can see; {_GIVE_ANOTHER}"


def _distrust(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _NAME_MISMATCH:
        return (
            f"the server's certificate is for another name ({error.verify_message}); call it by a name of the "
            "certificate, or give that one as server_name (--tls-server-name)"
        )
    if error.verify_code == _EXPIRED:
        return "the server's certificate has expired; its owner must replace it"
    if error.verify_code == _NOT_YET_VALID:
        return "the server's certificate is not valid yet; is the clock of this machine right?"
    return (
        f"the server's certificate is not trusted ({error.verify_message}); give the certificate of who signed it as "
        "ca (--tls-ca)"
    )


def _trusting_context() -> ssl.SSLContext:
    """Return a context that takes any certificate: whether there is TLS is all that is asked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
