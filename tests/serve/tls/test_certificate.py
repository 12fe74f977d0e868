"""The files of a certificate: what is told of wrong ones."""

import os
import ssl
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fuseline.serve.errors import InputError
from fuseline.serve.tls.certificate import CertificateFiles
from fuseline.serve.tls.grpc_credentials import check_grpc_takes
from fuseline.serve.tls.validity import validity_of
from tests.serve.certificates import Authority, Pair


def error_of(files: CertificateFiles) -> str:
    with pytest.raises(InputError) as caught:
        files.read()
    return str(caught.value)


def files_of(pair: Pair, client_ca: Path | None = None) -> CertificateFiles:
    return CertificateFiles(pair.cert, pair.key, client_ca)


@pytest.mark.parametrize("rsa", [False, True])
def test_a_sound_pair_is_read_with_its_validity(authority: Authority, rsa: bool) -> None:
    pair = authority.issue(rsa=rsa, days=10)
    certificate = files_of(pair, authority.ca).read()
    known = x509.load_pem_x509_certificate(pair.cert.read_bytes())
    assert certificate.not_before == known.not_valid_before_utc.timestamp()
    assert certificate.not_after == known.not_valid_after_utc.timestamp()
    assert certificate.fault(certificate.not_after - 1) is None
    assert "has expired" in (certificate.fault(certificate.not_after + 1) or "")
    assert "only from" in (certificate.fault(certificate.not_before - 1) or "")
    assert certificate.context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert certificate.context.verify_mode == ssl.CERT_REQUIRED
    check_grpc_takes(certificate, "both")
    # It must never be told with an error.
    assert b"PRIVATE" not in repr(certificate).encode()


def test_the_validity_is_read_in_each_of_its_two_forms() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "long-lived")])
    first, last = datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    its = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(2**150)
        .not_valid_before(first)
        .not_valid_after(last)
        .sign(key, hashes.SHA256())
    )
    der = its.public_bytes(serialization.Encoding.DER)
    assert validity_of(der) == (first.timestamp(), last.timestamp())
    for end in (0, 1, 3, 20, 60):
        with pytest.raises(ValueError, match="ends too early|no time|unpack|does not match"):
            validity_of(der[:end])


def _missing(pair: Pair) -> CertificateFiles:
    return CertificateFiles(pair.cert.with_name("absent.pem"), pair.key)


def _folder(pair: Pair) -> CertificateFiles:
    return CertificateFiles(pair.cert, pair.key.parent)


def _pipe(pair: Pair) -> CertificateFiles:
    path = pair.cert.with_name("pipe")
    os.mkfifo(path)
    return CertificateFiles(path, pair.key)


def _exchanged(pair: Pair) -> CertificateFiles:
    return CertificateFiles(pair.key, pair.cert)


def _certificate_twice(pair: Pair) -> CertificateFiles:
    return CertificateFiles(pair.cert, pair.cert)


def _empty(pair: Pair) -> CertificateFiles:
    pair.cert.write_bytes(b"")
    return files_of(pair)


def _in_der(pair: Pair) -> CertificateFiles:
    pair.cert.write_bytes(pair.der)
    return files_of(pair)


def _cut(pair: Pair) -> CertificateFiles:
    lines = pair.cert.read_text().splitlines()
    pair.cert.write_text("\n".join([*lines[:3], *lines[5:]]))
    return files_of(pair)


def _cut_key(pair: Pair) -> CertificateFiles:
    lines = pair.key.read_text().splitlines()
    pair.key.write_text("\n".join([lines[0], *lines[2:]]))
    return files_of(pair)


def _endless(pair: Pair) -> CertificateFiles:
    with pair.cert.open("r+b") as file:
        file.truncate(2**30)
    return files_of(pair)


def _nul_in_name(pair: Pair) -> CertificateFiles:
    return CertificateFiles(Path("a\0b"), pair.key)


def _client_ca_without_any(pair: Pair) -> CertificateFiles:
    path = pair.cert.with_name("nobody.pem")
    path.write_text("nobody\n")
    return CertificateFiles(pair.cert, pair.key, path)


def _damaged_client_ca(pair: Pair) -> CertificateFiles:
    path = pair.cert.with_name("damaged.pem")
    path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return CertificateFiles(pair.cert, pair.key, path)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_missing, "--tls-cert .*absent.pem: there is no such file"),
        (_folder, "--tls-key .* is no regular file"),
        (_pipe, "--tls-cert .*pipe is no regular file"),
        (_exchanged, "--tls-cert .* holds a private key and no certificate; --tls-key takes the key"),
        (_certificate_twice, "--tls-key .* holds no private key in PEM; it holds a certificate"),
        (_empty, "--tls-cert .* holds no certificate in PEM"),
        (_in_der, "--tls-cert .* seems to be DER; convert it by `openssl"),
        (_cut, "is damaged"),
        (_cut_key, "is damaged"),
        (_endless, "--tls-cert .* has more than 1048576 bytes"),
        (_nul_in_name, "--tls-cert .* can't be read"),
        (_client_ca_without_any, "--tls-client-ca .*nobody.pem holds no certificate in PEM"),
        (_damaged_client_ca, "--tls-client-ca .*damaged.pem: a certificate in it is damaged"),
    ],
)
def test_a_wrong_file_is_told_with_its_flag_and_what_is_wrong(
    authority: Authority, spoil: Callable[[Pair], CertificateFiles], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        spoil(authority.issue()).read()


def test_the_clients_ca_may_have_comments_in_any_language(authority: Authority, tmp_path: Path) -> None:
    client_ca = tmp_path / "ca.pem"
    client_ca.write_bytes("# NetLock Arany Főtanúsítvány\n".encode() + authority.ca.read_bytes())
    certificate = files_of(authority.issue(), client_ca).read()
    assert len(certificate.context.get_ca_certs()) == 1
    check_grpc_takes(certificate, "both")


def test_a_file_of_begins_without_an_end_is_refused_at_once(authority: Authority, tmp_path: Path) -> None:
    path = tmp_path / "begins.pem"
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\n" * 30_000)
    begun = time.process_time()
    assert "holds no certificate in PEM" in error_of(CertificateFiles(path, authority.issue().key))
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("rsa", [False, True])
def test_a_key_of_another_certificate_is_told(authority: Authority, rsa: bool) -> None:
    pair, other = authority.issue(), authority.issue("other", rsa=rsa)
    assert "the key is not that of the certificate" in error_of(CertificateFiles(pair.cert, other.key))


@pytest.mark.parametrize("traditional", [False, True])
def test_nobody_is_asked_for_a_keys_passphrase(authority: Authority, traditional: bool) -> None:
    pair = authority.issue()
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    form = serialization.PrivateFormat.TraditionalOpenSSL if traditional else serialization.PrivateFormat.PKCS8
    encryption = serialization.BestAvailableEncryption(b"secret")
    pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))
    assert "is encrypted, and nobody is asked for its passphrase" in error_of(files_of(pair))


def test_a_certificate_too_weak_for_tls_is_told(tmp_path: Path) -> None:
    pair = self_signed(tmp_path, "rsa:1024")
    assert "too weak (EE_KEY_TOO_SMALL)" in error_of(files_of(pair))


def test_a_kind_of_key_that_grpc_does_not_know_is_told(tmp_path: Path) -> None:
    pair = self_signed(tmp_path, "ec", "-pkeyopt", "ec_paramgen_curve:secp256k1")
    certificate = files_of(pair).read()
    with pytest.raises(InputError, match="both: gRPC can't use them, although they fit each other"):
        check_grpc_takes(certificate, "both")


def self_signed(folder: Path, *kind: str) -> Pair:
    pair = Pair(folder / "own.pem", folder / "own.key")
    command = ["openssl", "req", "-x509", "-newkey", *kind, "-nodes", "-keyout", pair.key, "-out", pair.cert]
    subprocess.run([*command, "-subj", "/CN=own", "-days", "2"], check=True, capture_output=True)
    return pair
