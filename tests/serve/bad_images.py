"""Bytes that are no acceptable image, each with a word of the error that names why."""

import struct
import zlib

from tests.fakes.colours import encoded, noise


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, with next to no pixels behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    )


def bad_images() -> dict[str, tuple[bytes, str]]:
    """Name: the bytes, and what the error must say."""
    jpeg = encoded(noise(1)[0].repeat(16, 0).repeat(16, 1), "JPEG")
    return {
        "20,000 x 20,000 pixels": (png_header(20_000, 20_000), "20000"),
        "truncated JPEG": (jpeg[:-100], "truncated"),
        "GIF": (encoded(noise(1)[0], "GIF"), "GIF"),
        "no bytes": (b"", "0 bytes"),
        "text": (b"this is no picture", "JPEG, PNG"),
    }
