"""A certificate with its key, read from files and found usable."""

import re
import ssl
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fuseline.serve.errors import InputError
from fuseline.serve.tls.validity import validity_of

_MOST_BYTES = 2**20
_MOST_ATTEMPTS = 5
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_NO_ASCII = re.compile(rb"[^\x00-\x7f]")
_KEY = re.compile(rb"-----BEGIN ((?:[A-Z]+ )*)PRIVATE KEY-----")

FilesState = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a server shows to its clients, and the certificates that it wants of them. It lies in memory."""

    chain_pem: bytes
    """The server's certificate and the intermediate ones, in PEM."""
    key_pem: bytes = field(repr=False)
    client_ca_pem: bytes | None
    """Certificates of which a client must show one that they signed; None: clients show none."""
    context: ssl.SSLContext
    """The same for Python's TLS, with HTTP/1.1 as its protocol and TLS 1.2 at least."""
    not_before: float
    """Time from which on the certificate is valid, in seconds since the epoch."""
    not_after: float
    """Time until which the certificate is valid, in seconds since the epoch."""

    def fault(self, now: float) -> str | None:
        """Return why clients refuse the certificate at the time `now`, in seconds since the epoch; None: they don't."""
        if now > self.not_after:
            return f"has expired on {as_date(self.not_after)}"
        if now < self.not_before:
            return f"is valid only from {as_date(self.not_before)} on"
        return None


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Paths of a server's certificate, as the flags give them; links are followed anew each time."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every path that is read."""
        return (self.certificate, self.key, *(() if self.client_ca is None else (self.client_ca,)))

    def state(self) -> FilesState:
        """Return what changes whenever one of the files is replaced or written; it never raises."""
        return tuple(_state_of(path) for path in self.paths)

    @property
    def key_is_open_to_all(self) -> bool:
        """Whether every user of this machine may read the key's file."""
        return bool(self.key.stat().st_mode & stat.S_IROTH)

    def read(self) -> Certificate:
        """Return what the files hold, all of one moment.

        Raises:
            InputError: a file can't be read or is no PEM, the key is another certificate's or encrypted, or this
                Python's TLS refuses them. The message names the flag and the file.
        """
        for _ in range(_MOST_ATTEMPTS):
            before = self.state()
            certificate = self._read()
            if self.state() == before:
                return certificate
        raise InputError(f"--tls-cert {self.certificate} and its key change all the time; write them once")

    def _read(self) -> Certificate:
        chain = _bytes_of("--tls-cert", self.certificate)
        first = _first_certificate(chain)
        if first is None:
            raise InputError(f"--tls-cert {self.certificate} {_no_certificate(chain)}")
        key = _bytes_of("--tls-key", self.key)
        found = _KEY.search(key)
        if found is None:
            raise InputError(
                f"--tls-key {self.key} holds no private key in PEM"
                + ("; it holds a certificate, which --tls-cert takes" if _first_certificate(key) else "")
            )
        if b"ENCRYPTED" in found[1] or b"Proc-Type: 4,ENCRYPTED" in key:
            raise InputError(
                f"--tls-key {self.key} is encrypted, and nobody is asked for its passphrase; decrypt it by "
                "`openssl pkey -in FILE -out FILE`, into a file that only the server may read"
            )
        client_ca = None
        if self.client_ca is not None:
            client_ca = _bytes_of("--tls-client-ca", self.client_ca)
            if _first_certificate(client_ca) is None:
                raise InputError(f"--tls-client-ca {self.client_ca} {_no_certificate(client_ca)}")
        context = self._context(client_ca)
        try:
            not_before, not_after = validity_of(ssl.PEM_cert_to_DER_cert(first.decode("ascii")))
        except ValueError as error:
            raise InputError(f"--tls-cert {self.certificate} is a damaged certificate ({error})") from error
        return Certificate(chain, key, client_ca, context, not_before, not_after)

    def _context(self, client_ca: bytes | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_passphrase)
        except ssl.SSLError as error:
            raise InputError(f"--tls-cert {self.certificate}, --tls-key {self.key}: {_why_refused(error)}") from error
        except OSError as error:
            raise InputError(f"--tls-cert {self.certificate} can't be read ({error.strerror})") from error
        if client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                # It takes ASCII alone, and comments between certificates have names in any language.
                context.load_verify_locations(cadata=_NO_ASCII.sub(b"?", client_ca).decode("ascii"))
            except ssl.SSLError as error:
                raise InputError(f"--tls-client-ca {self.client_ca}: a certificate in it is damaged") from error
        return context


def as_date(seconds: float) -> str:
    """Return a time, in seconds since the epoch, for people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _bytes_of(flag: str, path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{flag} {path} is no regular file, which could be read again once it is replaced")
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise InputError(f"{flag} {path}: there is no such file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{flag} {path} can't be read ({reason})") from error
    if len(data) > _MOST_BYTES:
        raise InputError(f"{flag} {path} has more than {_MOST_BYTES} bytes, which no certificate has")
    return data


def _first_certificate(data: bytes) -> bytes | None:
    """Return the first certificate in `data`, in PEM; it may be damaged within. None: there is none."""
    # A regular expression would look for the end from every begin anew.
    start = data.find(_BEGIN)
    end = -1 if start < 0 else data.find(_END, start + len(_BEGIN))
    return None if end < 0 else data[start : end + len(_END)]


def _no_certificate(data: bytes) -> str:
    if _KEY.search(data):
        return "holds a private key and no certificate; --tls-key takes the key"
    if data[:1] == b"\x30":
        return "is no PEM, it seems to be DER; convert it by `openssl x509 -inform der -in FILE -out FILE.pem`"
    return "holds no certificate in PEM, which begins with -----BEGIN CERTIFICATE-----"


def _why_refused(error: ssl.SSLError) -> str:
    # A key of another kind than the certificate's gives the second.
    if error.reason in {"KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED", "KEY_TYPE_MISMATCH"}:
        return "the key is not that of the certificate; give the two that were made together"
    if error.reason in {"EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"}:
        return f"the certificate is too weak ({error.reason}); make one with a key of 2048 bits RSA or 256 bits EC"
    return f"one of them is damaged ({error.reason or error})"


def _no_passphrase() -> str:
    raise InputError("the key is encrypted")


def _state_of(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
