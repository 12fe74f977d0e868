"""What whoever runs a server writes: flags, a manifest's settings, hashes of tokens, certificates, traces to plan by.

They are read at the start, where an error is one line, and some of them again while the server runs, where a file that
is broken must not end it.
"""

import json
import tempfile
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np

from fuseline.benchmarks.plan.trace import read_trace
from fuseline.serve.access.token_file import add_line, read_token_file, token_line, token_lines
from fuseline.serve.errors import InputError, PackageError
from fuseline.serve.model_package import load_package
from fuseline.serve.model_settings import check_model_settings, settings_of_model
from fuseline.serve.settings import Settings, settings_from_flags
from fuseline.serve.tls.certificate import CertificateFiles, as_date
from fuseline.serve.tls.certificates import Certificates
from fuseline.serve.version_policy import VersionPolicies
from tests.fakes.colours import write_colours_package
from tests.fuzz.target import Target, check_message
from tests.serve.certificates import Authority

_OF_MANY = ("alias", "shadow", "set", "version_policy", "load_model", "listen")
"""Flags that may be given several times, each a text with a form of its own."""
_OF_ONE = ("latency_target", "backend", "precision", "max_batch", "host")


def _flags(data: bytes) -> None:
    """Lines such as `alias=stable=colours`, as flags and variables of the environment bring them."""
    flags: dict[str, object] = {"model_repository": ("models",), "model_control_mode": "explicit"}
    # Python decodes what it gets from the system so.
    for line in data.decode(errors="surrogateescape").split("\n"):
        name, _, value = line.partition("=")
        if name in _OF_MANY:
            flags[name] = (*flags.get(name, ()), value)  # type: ignore[misc]
        elif name in _OF_ONE:
            flags[name] = value
    try:
        settings = settings_from_flags(**flags)
        check_model_settings(settings)
    except InputError as error:
        _check_line(error)
        return
    for alias in settings.aliases:
        assert abs(sum(alias.weights) - 1) < 1e-6
    for shadow in settings.shadows:
        assert 0 < shadow.share <= 1
    assert VersionPolicies.from_texts(settings.version_policy).of("colours").candidates(["1", "10", "2"]) is not None


@cache
def _flag_texts() -> list[bytes]:
    return [
        b"alias=stable=colours\nalias=split=colours:1@0.9,colours:2@0.1\nshadow=stable=colours:2@0.05",
        b"version_policy=latest:3\nversion_policy=colours=specific:1,2,10\nversion_policy=other=all\nload_model=*",
        b"set=colours.max_batch=8\nset=colours.latency_target=50ms\nset=a.b.backend=onnxruntime\nset=colours.lanes=2",
        b"latency_target=0.05s\nlisten=127.0.0.1:0\nlisten=unix:/tmp/a\nlisten=[::1]:8001\nset=c.precision=fp16",
        b"set=colours.max_queue_ms=1e3\nset=colours.threads=0\nmax_batch=32\nbackend=auto\nhost=::1\nload_model=a",
    ]


def _serving(data: bytes) -> None:
    """The `serving` of a manifest that is else sound."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "manifest.json").write_bytes(b'{"serving":' + data + b"," + _rest_of_manifest())
        try:
            manifest = load_package(Path(folder)).manifest
        except PackageError as error:
            check_message(error, most=12_000)
            return
        try:
            settings = settings_of_model(Settings(), manifest)
        except InputError as error:
            _check_line(error)
        else:
            assert settings.max_queue_rows >= settings.max_images_per_request


@cache
def _rest_of_manifest() -> bytes:
    """A manifest as it goes on after its first member."""
    with tempfile.TemporaryDirectory() as folder:
        text = (write_colours_package(Path(folder) / "package") / "manifest.json").read_text()
    return json.dumps(json.loads(text)).removeprefix("{").encode()


def _serving_blocks() -> list[bytes]:
    return [
        b'{"max_batch": 8, "latency_target": "50ms", "backend": "onnxruntime", "precision": "fp32"}',
        b'{"max_queue_rows": 256, "max_queue_ms": 1e3, "max_delay_ms": 0.5, "threads": 2, "lanes": null}',
        b"{}",
        b'{"max_batch": ' + b"9" * 4000 + b"}",
    ]


def _token_file(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens"
        path.write_bytes(data)
        try:
            lines = token_lines(read_token_file(path), path)
        except InputError as error:
            _check_line(error)
        else:
            assert token_lines("\n".join(map(str, lines)).encode(), path) == lines
            for line in lines:
                assert line.expires is None or line.expires.timestamp() > 0 or line.expires.year < 1971
        try:
            add_line(path, _A_LINE)
        except InputError as error:
            _check_line(error)
        else:
            # What was added to can be served from, if it could be before.
            assert _A_LINE in token_lines(read_token_file(path), path)


_A_LINE = token_line(f"fuseline_{'a' * 43}", name="added", role="infer")


@cache
def _token_files() -> list[bytes]:
    shop = token_line(f"fuseline_{'b' * 43}", name="web-shop", role="infer", expires=datetime(2027, 1, 31, tzinfo=UTC))
    admin = token_line(f"fuseline_{'c' * 43}", name="deployer@example.com", role="admin")
    return [f"# NAME ROLE HASH EXPIRES\n{shop}\n\n{admin}\n".encode(), f"{admin}\r\n  {shop}".encode(), b"# none\n"]


def _certificate(data: bytes) -> None:
    """One file as the certificate, its key and the clients' CA at once, which PEM allows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "server.pem"
        path.write_bytes(data)
        try:
            certificate = Certificates(CertificateFiles(path, path, path), is_quiet=True).current
        except InputError as error:
            _check_line(error)
        else:
            as_date(certificate.not_before)
            as_date(certificate.not_after)
            check_message(ValueError(certificate.fault(time.time()) or "none"))


@cache
def _certificates() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(Path(folder))
        ca = authority.ca.read_bytes()
        pairs = (authority.issue("ec"), authority.issue("rsa", rsa=True), authority.issue("old", expired=True))
        files = [pair.key.read_bytes() + pair.cert.read_bytes() + ca for pair in pairs]
    encrypted = files[0].replace(b"-----BEGIN EC PRIVATE", b"-----BEGIN ENCRYPTED PRIVATE")
    in_hungarian = "# Főtanúsítvány\n".encode() + files[0]
    return [*files, encrypted, in_hungarian, b"-----BEGIN CERTIFICATE-----" * 30_000 + b"-----BEGIN PRIVATE KEY-----"]


def _trace(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        path.write_bytes(data)
        try:
            recorded = read_trace(path)
        except InputError as error:
            _check_line(error)
        else:
            assert len(recorded.seconds) == len(recorded.rows) > 1
            assert recorded.seconds[0] == 0 < recorded.seconds[-1] < np.inf
            assert (np.diff(recorded.seconds) >= 0).all()
            assert recorded.rows.min() >= 1


def _traces() -> list[bytes]:
    return [
        b"# seconds\n0.5\n0.513 4\n0.521\n",
        b'\xef\xbb\xbftime_ms,"rows"\r\n500,1\r\n513,"4"\r\n',
        b'{"timestamp": "2026-11-27T22:11:04.125Z", "n": 2}\n{"timestamp": 1795817465.5}\n',
        b"2026-11-27 22:11:04\n2026-11-27 22:11:05.5+01:00 4\n",
        b'{"t":' * 10_000,
    ]


def _check_line(error: InputError) -> None:
    """Fail unless the message is one line: a start that fails says one."""
    check_message(error)
    assert "\n" not in str(error)


TARGETS: dict[str, Target] = {
    "flags": Target(_flags, _flag_texts),
    "serving blocks": Target(_serving, _serving_blocks),
    "token files": Target(_token_file, _token_files),
    "certificates": Target(_certificate, _certificates),
    "traces": Target(_trace, _traces),
}
"""Readers of these."""
