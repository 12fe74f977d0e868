"""Turns encoded bytes into the network's uint8 pixels: decodes within bounds, resizes and crops as in training."""

import time
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from fuseline.serve.errors import ImageError
from fuseline.serve.model_package import MAX_PIXELS, CropOffset, InputSpec

_FAST_DECODE_GAP = 2
"""Smallest ratio of a decoded picture's size to the size that it is resized to, so that resizing still smooths it: at 1
a ResNet-20 answered another class for one picture in eight."""

_PROGRESSIVE_READ_BYTES = 1024
"""Bytes that the decoder of a progressive JPEG is given at a time. A scan over all pixels, which takes some 15 ms for
24 million of them, may have 42 bytes: with Pillow's 64 KiB a deadline would be heeded every 20 s."""

_MODES = {1: "L", 3: "RGB"}
_CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK")
"""Pillow's modes of 8 bits a channel or fewer, which it converts correctly. It clips all others at 255."""
_INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_PILLOW_CANNOT = "cannot handle "
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_SIGNATURES = (
    (0, b"\xff\xd8\xff", "a JPEG"),
    (0, _PNG_SIGNATURE, "a PNG"),
    (8, b"WEBP", "a WebP"),
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (0, b"\0\0\1\0", "an icon file"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 file"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\3\4", "a zip archive"),
    (0, b"\x1f\x8b", "gzipped data"),
    (4, b"ftypavif", "an AVIF"),
    (4, b"ftyphei", "a HEIC"),
    (4, b"ftyp", "an MP4-like file"),
)


def decode_image(
    data: bytes,
    *,
    height: int,
    width: int,
    channels: Literal[1, 3] = 3,
    resize_shorter_side: int,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    max_pixels: int = MAX_PIXELS,
    timeout_s: float | None = None,
    fast: bool = False,
    crop_offset: CropOffset = "rounded",
) -> NDArray[np.uint8]:
    """Return the pixels (height, width, channels), C-contiguous, RGB or grey, of a JPEG, PNG or WebP file.

    They are, to the pixel, those of torchvision's image loader (`PIL.Image.open(...).convert("RGB")`, or "L" for one
    channel) followed by `transforms.Resize(resize_shorter_side, interpolation)` and `CenterCrop((height, width))`. As
    there, alpha and colour profiles are dropped, EXIF orientation is ignored, since training ignored it too, and an
    animation gives its first frame. Channels of 16 bits give their upper 8 (value // 256), also in a grey PNG, which
    that loader makes white.

    `crop_offset` may be `floored`, to crop as transformers' image processors do; see
    `fuseline.serve.model_package.Preprocessing`.

    With `fast`, a JPEG is decoded at an eighth, a quarter or half of its size where that is still at least twice the
    size it is resized to (libjpeg's scaled decoding), and its pixels then differ a little from those above.

    The size in the file's header is checked before any pixel is decoded. Safe to call from many threads; Pillow's
    global settings are neither changed nor relied upon, and no Pillow warning is issued.

    Raises:
        ImageError: no or truncated data, another format, more than `max_pixels` before or after resizing, or a JPEG or
            PNG of which something is left to decode after `timeout_s`: a progressive JPEG can take minutes whatever its
            size, by going over its pixels again and again.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    image = _open_header(data, max_pixels, deadline)
    resized_width, resized_height = _resized_size(*image.size, resize_shorter_side)
    if resized_width * resized_height > max_pixels:
        raise ImageError(
            f"a picture of {image.width} x {image.height} pixels becomes {resized_width} x {resized_height} when its "
            f"shorter side is resized to {resize_shorter_side}, above the {max_pixels} pixels accepted; crop it first"
        )
    mode = _MODES[channels]
    try:
        if fast and isinstance(image, JpegImageFile):
            # Sets libjpeg's scale to the smallest that keeps both sides; the mode is left to `convert` below.
            image.draft(None, (_FAST_DECODE_GAP * resized_width, _FAST_DECODE_GAP * resized_height))
        image.load()
        converted = _in_mode(image, mode)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(f"{_describe(data)} is truncated or damaged ({error}); send the whole file") from error
    if converted.size != (resized_width, resized_height):
        converted = converted.resize((resized_width, resized_height), _INTERPOLATIONS[interpolation])
    left, top = (
        _offset(resized, crop, crop_offset) for resized, crop in ((resized_width, width), (resized_height, height))
    )
    cropped = converted.crop((left, top, left + width, top + height))
    return np.asarray(cropped, dtype=np.uint8).reshape(height, width, channels)


def decode_for(
    spec: InputSpec,
    data: bytes,
    *,
    fast: bool = False,
    max_pixels: int = MAX_PIXELS,
    timeout_s: float | None = None,
) -> NDArray[np.uint8]:
    """Return `decode_image`'s pixels (height, width, channels) for a network that takes `spec`.

    Raises:
        ImageError: as `decode_image`.
    """
    return decode_image(
        data,
        height=spec.height,
        width=spec.width,
        channels=spec.channels,
        resize_shorter_side=spec.preprocessing.resize_shorter_side,
        interpolation=spec.preprocessing.interpolation,
        crop_offset=spec.preprocessing.crop_offset,
        fast=fast,
        max_pixels=max_pixels,
        timeout_s=timeout_s,
    )


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (height, width) in pixels of a JPEG, PNG or WebP file, from its header.

    Raises:
        ImageError: as `decode_image`.
    """
    image = _open_header(data, max_pixels)
    return image.height, image.width


def _open_header(data: bytes, max_pixels: int, deadline: float | None = None) -> ImageFile:
    """Return the image with its header read, its pixels not yet decoded; reading them ends at `deadline`.

    `Image.open` is avoided: it warns by a global bound and parses what is of no use here.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            image: ImageFile = _JpegImageFile(_Bytes(data, deadline))
            if "progressive" in image.info:
                image.decodermaxblock = _PROGRESSIVE_READ_BYTES
        elif data.startswith(_PNG_SIGNATURE):
            image = PngImageFile(_Bytes(_without_png_extras(data), deadline))
        elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            # Pillow's WebP decoder allocates the canvas on opening, so this header is read here first.
            _check_pixels("WebP", *_webp_canvas(data), max_pixels)
            image = WebPImageFile(BytesIO(data))
        else:
            raise ImageError(f"{_describe(data)} came where a JPEG, PNG or WebP file is expected; convert it to one")
    except (ImageError, MemoryError):
        raise
    # On hostile bytes Pillow's readers raise anything: SyntaxError, struct.error, KeyError, ...
    except Exception as error:
        if str(error).startswith(_PILLOW_CANNOT):
            cure = "save it as an ordinary JPEG, with 8 bits a channel and 1, 3 or 4 channels"
            raise ImageError(f"{_describe(data)} is of a kind that isn't read ({error}); {cure}") from error
        raise ImageError(f"{_describe(data)} has a damaged header ({error}); send the whole file") from error
    _check_pixels(str(image.format), *image.size, max_pixels)
    if image.mode not in (*_CONVERTIBLE, "I;16"):
        raise ImageError(f"{_describe(data)} has pixels of the kind {image.mode}; save it with 8 bits a channel")
    return image


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return the loaded `image` in `mode`, `L` or `RGB`."""
    if image.mode == "I;16":
        # Pillow itself does this with 16-bit colours; in grey it would clip values above 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == mode else image.convert(mode)


class _Bytes(BytesIO):
    """Bytes of a picture that are not given out after a deadline on the monotonic clock.

    Pillow feeds its decoders of JPEG and PNG with some KiB at a time, so this ends them.
    """

    def __init__(self, data: bytes, deadline: float | None) -> None:
        super().__init__(data)
        self._deadline = deadline

    def read(self, size: int | None = -1, /) -> bytes:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise ImageError(
                f"{_describe(self.getvalue())} takes too long to decode; send it smaller, or not progressive"
            )
        return super().read(size)


class _JpegImageFile(JpegImageFile):
    """A JPEG whose EXIF block, of no use here, is never parsed: a damaged one would make Pillow warn."""

    def _read_dpi_from_exif(self) -> None:
        return


def _without_png_extras(data: bytes) -> bytes:
    """Return a PNG with only the chunks that hold pixels: the others cost memory and make Pillow warn."""
    kept, start = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while start + 8 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] in _PNG_PIXEL_CHUNKS:
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Return width and height in pixels: RFC 9649, sections 2.5 to 2.7."""
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X" and len(body) == 10:
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and len(body) == 10 and body[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    raise ImageError(f"the WebP of {len(data)} bytes has a truncated or damaged header; send the whole file")


def _check_pixels(format: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"the {format} has {width} x {height} = {width * height} pixels, at most {max_pixels} are accepted; "
            "send it smaller"
        )


def _resized_size(width: int, height: int, shorter_side: int) -> tuple[int, int]:
    """Return width and height as torchvision's `_compute_resized_output_size`: the longer side is cut to an integer."""
    if width <= height:
        return shorter_side, int(shorter_side * height / width)
    return int(shorter_side * width / height), shorter_side


def _offset(size: int, crop: int, kind: CropOffset) -> int:
    """Return where a crop begins along one side; below 0 where black is padded, less of it on the left or top."""
    if crop > size:
        return -((crop - size) // 2)
    return round((size - crop) / 2.0) if kind == "rounded" else (size - crop) // 2


def _describe(data: bytes) -> str:
    """Return a name for `data` in an error message."""
    if not data:
        return "nothing (0 bytes)"
    size = f"of {len(data)} bytes"
    for offset, signature, name in _SIGNATURES:
        if data.startswith(signature, offset):
            return f"{name} {size}"
    start = data[:24]
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start):
        return f"text {size} beginning {start.decode('ascii')!r}"
    return f"data {size} beginning with {start[:8].hex(' ')}"
