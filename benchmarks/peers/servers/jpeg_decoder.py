"""JPEG files to pixels, by the Pillow calls that `fuseline.serve.images` makes; a test holds the two together."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from PIL.Image import Resampling
from PIL.JpegImagePlugin import JpegImageFile

Array = np.ndarray[Any, np.dtype[Any]]


def open_decoder(side: int, resize: int) -> Callable[[Sequence[bytes]], Array]:
    """Return what turns files into uint8 pixels (files, side, side, 3), on as many threads as there are cores.

    The shorter side is resized to `resize`, then the centre is cropped.
    """
    # Pillow lets go of the interpreter while it works. Each thread by itself would leave the other cores idle.
    threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    return lambda files: np.stack(list(threads.map(partial(decode, side=side, resize=resize), files)))


def decode(data: bytes, *, side: int, resize: int) -> Array:
    """uint8 pixels (side, side, 3) of one file."""
    image = JpegImageFile(BytesIO(data))
    image.load()
    width, height = image.size
    size = (resize, int(resize * height / width)) if width <= height else (int(resize * width / height), resize)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    resized = rgb if rgb.size == size else rgb.resize(size, Resampling.BILINEAR)
    left, top = (round((length - side) / 2.0) for length in size)
    return np.asarray(resized.crop((left, top, left + side, top + side)))
