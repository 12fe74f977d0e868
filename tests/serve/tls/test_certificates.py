"""A certificate that follows its files."""

import logging
import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from fuseline.serve.errors import InputError
from fuseline.serve.metrics.tls_metrics import EXPIRY, show_certificates
from fuseline.serve.tls.certificate import CertificateFiles
from fuseline.serve.tls.certificates import Certificates, copied_in_memory, files_of_descriptors
from tests.serve.certificates import Authority, Pair, replace


def certificates_of(pair: Pair, **options: object) -> Certificates:
    return Certificates(CertificateFiles(pair.cert, pair.key), **options)  # type: ignore[arg-type]


def looked_twice(certificates: Certificates) -> bytes:
    """Look until a change has come to rest; the chain that is shown then."""
    certificates.check()
    certificates.check()
    return certificates.current.chain_pem


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_files_that_are_renamed_into_place_are_taken_up(authority: Authority) -> None:
    pair = authority.issue()
    certificates = certificates_of(pair)
    first = certificates.current
    assert looked_twice(certificates) == first.chain_pem
    assert certificates.current is first, "what has not changed is not read again"
    authority.issue()
    assert looked_twice(certificates) == pair.cert.read_bytes() != first.chain_pem
    assert (certificates.reloads, certificates.failures) == (1, 0)


def test_files_that_are_overwritten_are_taken_up(authority: Authority) -> None:
    pair, other = authority.issue(), authority.issue("other")
    certificates = certificates_of(pair)
    pair.cert.write_bytes(other.cert.read_bytes())
    pair.key.write_bytes(other.key.read_bytes())
    assert looked_twice(certificates) == other.cert.read_bytes()


def test_a_link_that_is_swapped_as_kubernetes_does_it_is_taken_up(authority: Authority, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    for number in (1, 2):
        authority.issue("tls", into=volume / f"..{number}")
    (volume / "..data").symlink_to("..1")
    pair = Pair(volume / "tls.pem", volume / "tls.key")
    pair.cert.symlink_to("..data/tls.pem")
    pair.key.symlink_to("..data/tls.key")
    certificates = certificates_of(pair)
    (volume / "..data_tmp").symlink_to("..2")
    (volume / "..data_tmp").rename(volume / "..data")
    assert looked_twice(certificates) == (volume / "..2" / "tls.pem").read_bytes()
    assert (certificates.reloads, certificates.failures) == (1, 0)


def test_a_pair_written_one_file_after_the_other_is_no_mismatch(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    pair, other = authority.issue(), authority.issue("other")
    certificates = certificates_of(pair)
    replace(pair.cert, other.cert.read_bytes())
    certificates.check()
    replace(pair.key, other.key.read_bytes())
    assert looked_twice(certificates) == other.cert.read_bytes()
    assert certificates.failures == 0
    assert errors_in(caplog) == []


def test_a_mismatched_pair_leaves_the_old_one_in_use_and_is_logged_and_counted_once(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    pair, other = authority.issue(), authority.issue("other")
    certificates = certificates_of(pair)
    first = certificates.current
    replace(pair.cert, other.cert.read_bytes())
    for _ in range(5):
        looked_twice(certificates)
    assert certificates.current is first
    assert (certificates.reloads, certificates.failures) == (0, 1)
    (error,) = errors_in(caplog)
    assert "the key is not that of the certificate" in error
    assert "the certificate that was read before stays in use" in error
    # It is mended by the other half.
    replace(pair.key, other.key.read_bytes())
    assert looked_twice(certificates) == other.cert.read_bytes()
    assert (certificates.reloads, certificates.failures) == (1, 1)


@pytest.mark.parametrize("spoil", ["remove", "empty", "expire"])
def test_what_can_not_be_used_leaves_the_old_one_in_use(
    authority: Authority, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    pair = authority.issue()
    certificates = certificates_of(pair)
    first = certificates.current
    if spoil == "remove":
        pair.cert.unlink()
    elif spoil == "empty":
        pair.key.write_bytes(b"")
    else:
        authority.issue(expired=True)
    for _ in range(3):
        looked_twice(certificates)
    assert certificates.current is first
    assert certificates.failures == 1
    (error,) = errors_in(caplog)
    assert {"remove": "no such file", "empty": "holds no private key", "expire": "has expired"}[spoil] in error
    authority.issue()
    assert looked_twice(certificates) == pair.cert.read_bytes()


def test_an_expired_certificate_is_served_and_said_loudly_and_a_sound_one_takes_over(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    pair = authority.issue(expired=True)
    certificates = certificates_of(pair)
    (error,) = errors_in(caplog)
    assert "has expired" in error
    assert "clients refuse this server until the file is replaced" in error
    authority.issue(days=1)
    looked_twice(certificates)
    assert certificates.reloads == 1
    assert len(errors_in(caplog)) == 1


def test_a_certificate_that_expires_while_it_is_served_is_said_once(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    times = [0.0]
    pair = authority.issue(days=1)
    certificates = certificates_of(pair, now=lambda: times[0])
    caplog.clear()
    times[0] = certificates.current.not_after - 1
    looked_twice(certificates)
    assert errors_in(caplog) == []
    times[0] = certificates.current.not_after + 1
    looked_twice(certificates)
    looked_twice(certificates)
    (error,) = errors_in(caplog)
    assert "has expired" in error


def test_a_key_that_everyone_may_read_is_warned_of(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    pair = authority.issue()
    certificates_of(pair)
    assert "may be read by every user" not in caplog.text
    pair.key.chmod(0o644)
    certificates_of(pair)
    assert "may be read by every user of this machine; `chmod o-r` mends that" in caplog.text


def test_one_process_of_a_server_logs_and_the_others_are_quiet(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    pair = authority.issue(expired=True)
    pair.key.chmod(0o644)
    certificates = certificates_of(pair, is_quiet=True)
    pair.key.write_bytes(b"")
    looked_twice(certificates)
    assert certificates.failures == 1
    assert caplog.text == ""


def test_a_process_that_starts_while_the_files_are_broken_takes_the_copy(authority: Authority) -> None:
    pair = authority.issue()
    files = CertificateFiles(pair.cert, pair.key, authority.ca)
    sound = files.read()
    descriptors = copied_in_memory(sound)
    try:
        pair.key.write_bytes(b"")
        certificates = Certificates(files, copy=files_of_descriptors(descriptors))
        with pytest.raises(InputError):
            Certificates(files)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    its = certificates.current
    assert (its.chain_pem, its.key_pem, its.client_ca_pem) == (sound.chain_pem, sound.key_pem, sound.client_ca_pem)
    assert certificates.failures == 1
    authority.issue()
    assert looked_twice(certificates) == pair.cert.read_bytes()


def test_metrics_tell_the_expiry_of_what_is_shown_and_what_became_of_changes(authority: Authority) -> None:
    pair = authority.issue(days=5)
    certificates = certificates_of(pair)
    registry, quiet = CollectorRegistry(), CollectorRegistry()
    show_certificates(certificates, registry)
    show_certificates(certificates, quiet, counts=False)
    assert registry.get_sample_value(EXPIRY) == certificates.current.not_after
    authority.issue(days=9)
    looked_twice(certificates)
    pair.key.write_bytes(b"")
    looked_twice(certificates)
    assert registry.get_sample_value(EXPIRY) == certificates.current.not_after
    for result in ("ok", "failed"):
        assert registry.get_sample_value("fuseline_tls_reloads_total", {"result": result}) == 1
    assert quiet.get_sample_value(EXPIRY) == certificates.current.not_after
    assert quiet.get_sample_value("fuseline_tls_reloads_total", {"result": "ok"}) is None
