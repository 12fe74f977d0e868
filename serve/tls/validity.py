"""Since when and until when a certificate is valid.

Python's ssl tells that of a peer's certificate only, after a handshake, and a server's own is of no less interest.
"""

from datetime import UTC, datetime

_UTC_TIME = 0x17
_GENERALIZED_TIME = 0x18
_EXPLICIT_VERSION = 0xA0
_FIELDS_BEFORE_VALIDITY = 3
"""serialNumber, signature and issuer."""


def validity_of(der: bytes) -> tuple[float, float]:
    """Return the times notBefore and notAfter of an X.509 certificate (RFC 5280, 4.1), in seconds since the epoch.

    Raises:
        ValueError: `der` is no certificate.
    """
    try:
        _, start, _ = _element(der, 0)  # Certificate
        _, start, _ = _element(der, start)  # TBSCertificate
        if der[start] == _EXPLICIT_VERSION:
            start = _element(der, start)[2]
        for _ in range(_FIELDS_BEFORE_VALIDITY):
            start = _element(der, start)[2]
        _, start, _ = _element(der, start)  # Validity
        first, first_start, first_end = _element(der, start)
        second, second_start, second_end = _element(der, first_end)
    except IndexError as error:
        raise ValueError("it ends too early") from error
    return _time(first, der[first_start:first_end]), _time(second, der[second_start:second_end])


def _element(der: bytes, start: int) -> tuple[int, int, int]:
    """Return the tag of the element at `start`, and where its content starts and ends."""
    length = der[start + 1]
    content = start + 2
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(der[content : content + size])
        content += size
    return der[start], content, content + length


def _time(tag: int, text: bytes) -> float:
    digits = text.decode("ascii")
    if tag == _UTC_TIME:
        digits = ("20" if digits[:2] < "50" else "19") + digits
    elif tag != _GENERALIZED_TIME:
        raise ValueError("it has no time of validity")
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
