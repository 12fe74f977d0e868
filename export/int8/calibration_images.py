"""The images that INT8 is calibrated on and those that it is judged by, which must not be the same."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuseline.serve.errors import InputError

MIN_IMAGES = 16
"""Smallest number of images that tells anything about the range of an activation, or about agreement."""
ENOUGH_IMAGES = 100
"""Number of images below which one image is more than a percent, and rare large activations are likely missed."""
_JUDGING_EVERY = 5


@dataclass(frozen=True, slots=True)
class CalibrationImages:
    """The images by use, each array uint8 (n, height, width, channels); no held-out image is among the others."""

    fitting: NDArray[np.uint8]
    """Images on which ranges are found."""
    judging: NDArray[np.uint8]
    """Images on which calibrators are compared and harmful layers are found."""
    judging_logits: NDArray[np.float32]
    """The FP32 graph's logits (n, classes) of `judging`."""
    held_out: NDArray[np.uint8]
    """Images on which the bar is checked."""
    held_out_logits: NDArray[np.float32]
    """Eager PyTorch's FP32 logits (n, classes) of `held_out`."""
    warnings: tuple[str, ...]


def split_images(
    calibration: NDArray[np.uint8],
    held_out: NDArray[np.uint8],
    held_out_logits: NDArray[np.float32],
    pixel_shape: tuple[int, int, int],
    fp32_logits: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
) -> CalibrationImages:
    """Split `calibration` in two, and leave out of `held_out` the images that are in it.

    Args:
        held_out_logits: eager PyTorch's FP32 logits (n, classes) of `held_out`.
        pixel_shape: (height, width, channels) of the model's images.
        fp32_logits: returns the FP32 graph's logits (n, classes) of images.

    Raises:
        InputError: images have another shape than `pixel_shape`, or are too few, or don't have as many logits.
    """
    for kind, pixels in (("calibration", calibration), ("held-out", held_out)):
        if pixels.ndim != 4 or pixels.shape[1:] != pixel_shape or pixels.dtype != np.uint8:
            raise InputError(
                f"the {kind} images are {pixels.dtype} {pixels.shape}; the model takes uint8 (n, "
                f"{', '.join(map(str, pixel_shape))})"
            )
    if len(held_out_logits) != len(held_out):
        raise InputError(f"{len(held_out)} held-out images came with logits of {len(held_out_logits)}")
    warnings = []
    seen = {image.tobytes() for image in calibration}
    new = np.array([image.tobytes() not in seen for image in held_out], bool)
    if not new.all():
        warnings.append(
            f"{int((~new).sum())} of {len(held_out)} held-out images are calibration images too and were left out"
        )
    for kind, count in (("to calibrate INT8 on", len(calibration)), ("to hold INT8 against", int(new.sum()))):
        if count < MIN_IMAGES:
            raise InputError(
                f"{count} images {kind}; at least {MIN_IMAGES} are needed, a few hundred are better: give more with "
                "--images"
            )
        if count < ENOUGH_IMAGES:
            warnings.append(f"only {count} images {kind}; {ENOUGH_IMAGES} or more would tell more")
    judged = np.arange(len(calibration)) % _JUDGING_EVERY == 0
    return CalibrationImages(
        fitting=calibration[~judged],
        judging=calibration[judged],
        judging_logits=fp32_logits(calibration[judged]),
        held_out=held_out[new],
        held_out_logits=held_out_logits[new],
        warnings=tuple(warnings),
    )
