"""Who a client is by the certificate that it has shown, the same over gRPC and HTTP."""

import hashlib
import ipaddress
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Any

PREFIX = "certificate:"
"""Begin of the name of a client that has shown a certificate: it is no host, and no name of another kind."""

_KINDS = ("URI", "DNS", "email", "IP Address")
"""Kinds of alternative names, the one that names a workload (SPIFFE) first. Python's words for them."""
_GRPC_KEYS = {"URI": "peer_uri", "DNS": "peer_dns", "email": "peer_email", "IP Address": "peer_ip"}


def client_of_peer_certificate(described: Mapping[str, Any], der: bytes) -> str:
    """Return the client's name by its certificate, as `ssl.SSLObject.getpeercert` returns it in its two forms.

    It is the first subject alternative name, URIs before DNS names before e-mail addresses before IP addresses; in a
    certificate without any the common name, and without that its SHA-256.
    """
    names = dict(reversed(described.get("subjectAltName", ())))
    common = [value for pairs in described.get("subject", ()) for key, value in pairs if key == "commonName"]
    return _chosen(names, common, lambda: der)


def client_of_auth_context(context: Mapping[str, Iterable[bytes]]) -> str | None:
    """Return the same by gRPC's description of a call's connection; None: the client has shown no certificate."""
    pem = next(iter(context.get("x509_pem_cert", ())), None)
    if pem is None:
        return None
    names = {
        kind: values[0].decode("utf-8", "replace")
        for kind, key in _GRPC_KEYS.items()
        if (values := list(context.get(key, ())))
    }
    common = [name.decode("utf-8", "replace") for name in context.get("x509_common_name", ())]
    return _chosen(names, common, lambda: ssl.PEM_cert_to_DER_cert(pem.decode("ascii")))


def _chosen(names: Mapping[str, str], common: list[str], der: Callable[[], bytes]) -> str:
    for kind in _KINDS:
        if name := names.get(kind):
            return PREFIX + (_canonical(name) if kind == "IP Address" else name)
    return PREFIX + (common[0] if common and common[0] else f"sha256:{hashlib.sha256(der()).hexdigest()}")


def _canonical(ip: str) -> str:
    try:
        return str(ipaddress.ip_address(ip.strip()))
    except ValueError:
        return ip
