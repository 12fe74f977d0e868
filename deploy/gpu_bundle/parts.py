"""Files laid out over parts, none of which is larger than a transfer may be; what doesn't fit is cut."""

from collections.abc import Iterable
from dataclasses import dataclass

MAX_PART_BYTES = 55_000_000
"""Of a whole part."""
CONTENT_BYTES = MAX_PART_BYTES - 500_000
"""Of what is laid out over the parts; the rest is for the scripts, the manifest and the sums."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of one file, in one part."""

    file: str
    part: str
    stored_as: str
    """Its name within the part."""
    offset: int
    """In the file."""
    size: int


def lay_out(files: Iterable[tuple[str, int]], prefix: str, first: int = 1, limit: int = CONTENT_BYTES) -> list[Chunk]:
    """Fill `prefix`-`first`, `prefix`-`first + 1` and so on with `files` (name, size in bytes), in their order.

    Every part but the last is filled to `limit` bytes, so there are as few as can be. A file that goes over the end of
    a part is cut there; its pieces are called NAME.1-of-2 and NAME.2-of-2.
    """
    chunks = []
    number, room = first, limit
    for name, size in files:
        pieces: list[tuple[str, int, int]] = []
        offset = 0
        while not pieces or offset < size:
            if not room:
                number, room = number + 1, limit
            taken = min(room, size - offset)
            pieces.append((f"{prefix}-{number}", offset, taken))
            offset, room = offset + taken, room - taken
        for index, (part, start, length) in enumerate(pieces, 1):
            stored_as = name if len(pieces) == 1 else f"{name}.{index}-of-{len(pieces)}"
            chunks.append(Chunk(name, part, stored_as, start, length))
    return chunks
