"""Elements of the datatype BYTES in raw contents: each behind its length in 4 bytes, little-endian."""

from collections.abc import Iterable, Iterator

LENGTH_BYTES = 4


def raw_from_elements(elements: Iterable[bytes]) -> bytes:
    """Return the raw contents that hold `elements`."""
    return b"".join(part for element in elements for part in (len(element).to_bytes(LENGTH_BYTES, "little"), element))


def elements_from_raw(raw: bytes) -> Iterator[bytes]:
    """Yield the elements of `raw`.

    Raises:
        ValueError: a length lies: fewer bytes than it says are left. The message says how many.
    """
    start = 0
    while start < len(raw):
        begin = start + LENGTH_BYTES
        length = int.from_bytes(raw[start:begin], "little")
        start = begin + length
        if start > len(raw):
            raise ValueError(f"should have {length} bytes, of which {max(0, len(raw) - begin)} are there")
        yield raw[begin:start]
