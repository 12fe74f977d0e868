"""Who a client is by its certificate, where it has fewer names than most."""

import hashlib
import ssl

import pytest

from fuseline.serve.tls.client_name import client_of_auth_context, client_of_peer_certificate
from tests.serve.certificates import Authority

SUBJECT = ((("organizationName", "Pictures"),), (("commonName", "someone"),))


@pytest.mark.parametrize(
    ("described", "context", "client"),
    [
        ({"subject": SUBJECT}, {"x509_common_name": [b"someone"]}, "certificate:someone"),
        (
            {"subject": SUBJECT, "subjectAltName": (("DNS", "a.example"), ("URI", "spiffe://example/pictures"))},
            {
                "x509_common_name": [b"someone"],
                "peer_dns": [b"a.example"],
                "peer_uri": [b"spiffe://example/pictures"],
                "peer_spiffe_id": [b"spiffe://example/pictures"],
            },
            "certificate:spiffe://example/pictures",
        ),
        (
            {"subjectAltName": (("IP Address", "2001:DB8:0:0:0:0:0:7"),)},
            {"peer_ip": [b"2001:db8::7"]},
            "certificate:2001:db8::7",
        ),
    ],
)
def test_names_are_the_same_over_both_doors(
    authority: Authority, described: dict[str, object], context: dict[str, list[bytes]], client: str
) -> None:
    pair = authority.issue()
    assert client_of_peer_certificate(described, pair.der) == client
    assert client_of_auth_context(context | {"x509_pem_cert": [pair.cert.read_bytes()]}) == client


def test_a_certificate_without_a_name_is_known_by_its_fingerprint(authority: Authority) -> None:
    pair = authority.issue()
    client = f"certificate:sha256:{hashlib.sha256(pair.der).hexdigest()}"
    pem = ssl.DER_cert_to_PEM_cert(pair.der).encode()
    assert client_of_peer_certificate({"subject": ()}, pair.der) == client
    assert client_of_auth_context({"x509_pem_cert": [pem], "x509_common_name": [b""]}) == client


def test_a_connection_without_a_certificate_has_no_such_name() -> None:
    assert client_of_auth_context({"transport_security_type": [b"ssl"], "x509_common_name": [b"x"]}) is None
