"""Turns pixels into rows of a graph's input: as they are, or normalised as in training, which export and server share.

A package may take uint8 NHWC pixels, or what a client of an ordinary export sends: NCHW floats that the caller has
normalised. Pictures that come encoded, or as pixels, are then normalised here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.errors import RequestError
from fuseline.serve.model_package import InputSpec, Manifest, Normalization

_PIXEL_MAX = np.float32(255)
_EXPONENT_FP16 = np.uint16(0x7C00)
"""Bits of a float16's exponent, all of which are set in NaN and infinity (IEEE 754-2019, section 3.4)."""


def rows_from_pixels(pixels: NDArray[np.uint8], spec: InputSpec, normalization: Normalization) -> NDArray[Any]:
    """Return `pixels` (n, height, width, channels), uint8, as rows (n, *spec.row_shape) of `spec.row_dtype`.

    A graph that takes pixels gets this very array. For any other the result is new and contiguous:
    `(pixel / 255 - mean) / std`, computed in float32 in this order, as by torchvision's ToTensor and Normalize, and
    then rounded to the input's type.
    """
    if not spec.format.normalised:
        return pixels
    mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (normalization.mean, normalization.std))
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    rows = np.divide(planes, _PIXEL_MAX, dtype=np.float32)
    rows -= mean
    rows /= std
    return rows.astype(spec.row_dtype, copy=False)


def row_maker(manifest: Manifest) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    """Return `rows_from_pixels` for the graphs of a package."""
    return partial(rows_from_pixels, spec=manifest.input, normalization=manifest.normalization)


def check_finite(rows: NDArray[Any]) -> None:
    """Raise `RequestError` if `rows` (n, ...), floats that a client sent, have NaN or infinity; the message says where.

    Integers are always finite, and cost nothing.
    """
    if rows.dtype == np.float16:
        # Several times as fast as `np.isfinite`, which converts each number.
        finite = (rows.view(np.uint16) & _EXPONENT_FP16) != _EXPONENT_FP16
    elif rows.dtype.kind == "f":
        finite = np.isfinite(rows)
    else:
        return
    if finite.all():
        return
    bad = ~finite.reshape(len(rows), -1).all(axis=1)
    place = np.unravel_index(int(finite.argmin()), finite.shape)
    raise RequestError(
        f"the input has NaN or infinity in {int(bad.sum())} of {len(rows)} images, first {rows[place]} at "
        f"{[int(index) for index in place]}; send finite numbers, which are normalised pixels"
    )
