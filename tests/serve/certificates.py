"""Real certificates, made for a test."""

import os
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

HOSTS = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Pair:
    """Paths of a certificate, with what it needs of a chain, and of its key."""

    cert: Path
    key: Path

    @property
    def flags(self) -> tuple[object, ...]:
        return "--tls-cert", self.cert, "--tls-key", self.key

    @property
    def settings(self) -> dict[str, Path]:
        return {"tls_cert": self.cert, "tls_key": self.key}

    @property
    def client(self) -> dict[str, Path]:
        return {"cert": self.cert, "key": self.key}

    @property
    def der(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self.cert.read_text().partition("-----END")[0] + "-----END CERTIFICATE-----\n")


class Authority:
    """A certificate authority, and what it has signed, in files below a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._ca = trustme.CA()
        self.ca = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(self.ca)

    def issue(
        self,
        name: str = "server",
        *,
        names: tuple[str, ...] = HOSTS,
        common_name: str | None = None,
        expired: bool = False,
        days: float | None = None,
        rsa: bool = False,
        into: Path | None = None,
    ) -> Pair:
        """Sign a certificate of `names`, as `NAME.pem` and `NAME.key`, which are replaced by renaming."""
        now = datetime.now(UTC)
        times: dict[str, datetime] = {}
        if expired:
            times = {"not_before": now - timedelta(days=30), "not_after": now - timedelta(days=1)}
        elif days is not None:
            times = {"not_after": now + timedelta(days=days)}
        issued = self._ca.issue_cert(
            *names,
            common_name=common_name,
            key_type=trustme.KeyType.RSA if rsa else trustme.KeyType.ECDSA,
            **times,
        )
        folder = into or self.folder
        folder.mkdir(parents=True, exist_ok=True)
        pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
        replace(pair.key, issued.private_key_pem.bytes())
        replace(pair.cert, b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        return pair


def replace(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, and rename it into its place."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(data)
    beside.replace(path)


def shown_at(port: int, ca: Path, host: str = "127.0.0.1") -> bytes:
    """The certificate, in DER, that a new connection to `port` gets."""
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection((host, port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as encrypted,
    ):
        der = encrypted.getpeercert(binary_form=True)
    assert der is not None
    return der
