"""The picture of a convolution's filters."""

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TILE_SIDE = 48
"""Side in pixels to which a filter is enlarged, about."""
MAX_TILE_SIDE = 512
"""Largest side in pixels of a tile; a larger kernel is shrunk to it."""
MAX_TILES = 256
MAX_PICTURE_SIDE = 2048
_GAP = 2
_GRID_GREY = 255
_ZERO = 127.5


@dataclass(frozen=True, slots=True)
class FiltersPicture:
    """The picture of a grid of filters, and its caption."""

    png: bytes
    width: int
    height: int
    caption: str


def filters_picture(weight: NDArray[np.float32]) -> FiltersPicture:
    """Draw a convolution's `weight` (out, in, height, width), each filter normalised by its own largest magnitude.

    Zero is mid-grey. Filters over 3 channels are drawn as RGB; otherwise each channel of each filter is a grey tile of
    its own. At most `MAX_TILES` tiles are drawn, and no side is longer than `MAX_PICTURE_SIDE` pixels.
    """
    filters, channels, kernel_height, kernel_width = weight.shape
    rgb = channels == 3
    tiles = _normalised(weight[:MAX_TILES])
    # (tile, height, width, 3 or 1)
    tiles = tiles.transpose(0, 2, 3, 1) if rgb else tiles.reshape(-1, kernel_height, kernel_width, 1)
    height, width = _tile_size(kernel_height, kernel_width)
    total = filters if rgb else filters * channels
    shown, columns = _grid(total, height, width)
    rows = -(-shown // columns)
    size = columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP
    picture = Image.new("RGB" if rgb else "L", size, (_GRID_GREY,) * 3 if rgb else _GRID_GREY)
    for index in range(shown):
        pixels = tiles[index] if rgb else tiles[index, :, :, 0]
        # NEAREST draws a weight as a square; where a kernel is shrunk, BOX averages.
        how = Image.Resampling.NEAREST if height >= kernel_height else Image.Resampling.BOX
        row, column = divmod(index, columns)
        at = _GAP + column * (width + _GAP), _GAP + row * (height + _GAP)
        picture.paste(Image.fromarray(pixels).resize((width, height), how), at)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    caption = _caption(filters, channels, kernel_height, kernel_width, shown, total)
    return FiltersPicture(stream.getvalue(), *size, caption)


def _normalised(weight: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return `weight` as 0..255 with zero at mid-grey; a filter of zeros is grey all over."""
    largest = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
    scaled = weight / np.where(largest > 0, largest, 1)
    return np.rint(_ZERO + _ZERO * scaled).astype(np.uint8)


def _tile_size(kernel_height: int, kernel_width: int) -> tuple[int, int]:
    side = max(kernel_height, kernel_width)
    if side > MAX_TILE_SIDE:
        shrunk = MAX_TILE_SIDE / side
        return max(1, round(kernel_height * shrunk)), max(1, round(kernel_width * shrunk))
    scale = max(1, round(TILE_SIDE / side))
    return kernel_height * scale, kernel_width * scale


def _grid(tiles: int, height: int, width: int) -> tuple[int, int]:
    """Return the number of tiles shown and of columns: one to four times as wide as high, if possible without a gap."""
    most_columns = max(1, (MAX_PICTURE_SIDE - _GAP) // (width + _GAP))
    most_rows = max(1, (MAX_PICTURE_SIDE - _GAP) // (height + _GAP))
    shown = min(tiles, MAX_TILES, most_columns * most_rows)
    wanted = math.sqrt(2 * shown * height / width)
    fewest, most = math.ceil(wanted / math.sqrt(2)), math.floor(wanted * math.sqrt(2))
    full = [columns for columns in range(fewest, most + 1) if shown % columns == 0]
    columns = min(full, key=lambda count: abs(count - wanted)) if full else math.ceil(wanted)
    return shown, min(most_columns, max(columns, -(-shown // most_rows)))


def _caption(filters: int, channels: int, kernel_height: int, kernel_width: int, shown: int, tiles: int) -> str:
    size = f"{filters} filters of {kernel_height} x {kernel_width} over {channels} channel{'s' if channels > 1 else ''}"
    drawn = "in colour" if channels == 3 else "each channel of each in grey" if channels > 1 else "in grey"
    part = f"; the first {shown} of {tiles} tiles" if shown < tiles else ""
    return f"{size}, {drawn}, each filter by its own largest weight, zero mid-grey{part}"
