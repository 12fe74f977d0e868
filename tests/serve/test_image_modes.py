"""Pictures of every kind of pixel that PNG and JPEG have keep their values, or are refused."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fuseline.serve.errors import ImageError
from fuseline.serve.images import decode_image

HEIGHT, WIDTH = 13, 11
COLOUR_TYPES = {"grey": (0, 1), "grey and alpha": (4, 2), "RGB": (2, 3), "RGBA": (6, 4)}
"""Name to the colour type of the PNG specification's table 12, and how many channels it has."""
# x start, y start, x step, y step of Adam7's passes: PNG specification, section 8.1.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png_of_16_bits(pixels: NDArray[np.uint16], colour_type: int, *, interlaced: bool = False) -> bytes:
    """`pixels` (height, width, channels) as a PNG, written by the letter of its specification."""
    height, width = pixels.shape[:2]
    steps = ADAM7 if interlaced else ((0, 0, 1, 1),)
    passes = [pixels[y::dy, x::dx] for x, y, dx, dy in steps]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in passes if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, interlaced)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def whole(data: bytes, channels: int = 3, *, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Neither resized nor cropped."""
    return decode_image(data, height=height, width=width, channels=channels, resize_shorter_side=min(height, width))


def noise_of_16_bits(channels: int) -> NDArray[np.uint16]:
    return np.random.default_rng(channels).integers(0, 2**16, (HEIGHT, WIDTH, channels), dtype=np.uint16)


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "interlaced"])
@pytest.mark.parametrize("kind", COLOUR_TYPES)
def test_of_16_bits_a_channel_the_upper_8_are_taken(kind: str, interlaced: bool) -> None:
    colour_type, channels = COLOUR_TYPES[kind]
    pixels = noise_of_16_bits(channels)
    data = png_of_16_bits(pixels, colour_type, interlaced=interlaced)
    expected = (pixels // 256).astype(np.uint8)[..., : 3 if channels > 2 else 1]
    np.testing.assert_array_equal(whole(data), np.broadcast_to(expected, (HEIGHT, WIDTH, 3)))
    grey = whole(data, channels=1)
    if channels <= 2:
        np.testing.assert_array_equal(grey, expected)
    else:
        luma = expected @ np.array([0.299, 0.587, 0.114])
        assert np.abs(grey[..., 0] - luma).max() <= 1


@pytest.mark.parametrize("kind", COLOUR_TYPES)
def test_another_decoder_reads_the_same_16_bits(kind: str) -> None:
    torch = pytest.importorskip("torch")
    io_of_torchvision = pytest.importorskip("torchvision.io")
    colour_type, channels = COLOUR_TYPES[kind]
    data = png_of_16_bits(noise_of_16_bits(channels), colour_type)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises another package
        theirs = io_of_torchvision.decode_png(torch.tensor(list(data), dtype=torch.uint8)).numpy().transpose(1, 2, 0)
    assert theirs.dtype == np.uint16
    expected = (theirs // 256).astype(np.uint8)[..., : 3 if channels > 2 else 1]
    np.testing.assert_array_equal(whole(data), np.broadcast_to(expected, (HEIGHT, WIDTH, 3)))


def test_a_grey_ramp_of_16_bits_is_the_ramp_of_8_also_resized() -> None:
    ramp = np.arange(64, dtype=np.uint8)[np.newaxis, :].repeat(48, 0) * 4
    files = io.BytesIO(), io.BytesIO()
    Image.fromarray(ramp.astype(np.uint16) * 257).save(files[0], "PNG")
    Image.fromarray(ramp).save(files[1], "PNG")
    deep, shallow = (decode_image(f.getvalue(), height=24, width=24, resize_shorter_side=32) for f in files)
    np.testing.assert_array_equal(deep, shallow)
    assert deep.std() > 10


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_of_fewer_bits_spans_black_to_white(bits: int) -> None:
    most = 2**bits - 1
    values = (np.arange(HEIGHT * WIDTH) % (most + 1)).astype(np.uint8).reshape(HEIGHT, WIDTH)
    packed = (np.packbits(np.unpackbits(row[:, np.newaxis], axis=1)[:, -bits:].ravel()) for row in values)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    np.testing.assert_array_equal(whole(data, channels=1)[..., 0], values.astype(int) * 255 // most)


def test_a_palette_of_any_kind_gives_its_colours() -> None:
    indices = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 16
    palette = np.random.default_rng(0).integers(0, 256, (16, 3), dtype=np.uint8)
    for alpha in (None, bytes(range(16))):
        picture = Image.fromarray(indices, "P")
        picture.putpalette(palette.tobytes())
        file = io.BytesIO()
        picture.save(file, "PNG", **({} if alpha is None else {"transparency": alpha}))
        np.testing.assert_array_equal(whole(file.getvalue()), palette[indices])


@pytest.mark.parametrize("corner", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255), (60, 100, 10, 30)])
def test_ink_is_turned_into_light(corner: tuple[int, int, int, int]) -> None:
    """CMYK JPEGs, which hold ink inverted, as Adobe writes them."""
    file = io.BytesIO()
    Image.new("CMYK", (WIDTH, HEIGHT), corner).save(file, "JPEG", quality=100)
    ink, black = np.array(corner[:3]) / 255, corner[3] / 255
    expected = 255 * (1 - ink) * (1 - black)
    assert np.abs(whole(file.getvalue()).astype(float) - expected).max() <= 5


@pytest.mark.parametrize(
    ("position", "value", "reason"),
    [(4, 12, "cannot handle 12-bit layers"), (9, 2, "cannot handle 2-layer images")],
    ids=["12 bits", "2 channels"],
)
def test_a_jpeg_of_a_rare_kind_is_refused_with_a_cure_that_works(position: int, value: int, reason: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    data[data.index(b"\xff\xc0") + position] = value
    with pytest.raises(ImageError, match=f"{reason}.*save it as an ordinary JPEG, with 8 bits"):
        whole(bytes(data))


def test_a_kind_of_pixel_that_pillow_would_clip_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No PNG gives one now; another Pillow may read 16 bits as `I`, as versions before 10 did."""
    from PIL import PngImagePlugin

    modes = PngImagePlugin._MODES | {(16, 0): ("I", "I;16B")}
    monkeypatch.setattr(PngImagePlugin, "_MODES", modes)
    with pytest.raises(ImageError, match="pixels of the kind I; save it with 8 bits a channel"):
        whole(png_of_16_bits(noise_of_16_bits(1), 0))
