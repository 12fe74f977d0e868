"""Wrong, few and shared images."""

import numpy as np
import pytest

from fuseline.export.int8.calibration_images import ENOUGH_IMAGES, MIN_IMAGES, CalibrationImages, split_images
from fuseline.serve.errors import InputError

ROW = (4, 6, 3)
RANDOM = np.random.default_rng(0)


def pictures(count: int, row: tuple[int, ...] = ROW) -> np.ndarray:
    return RANDOM.integers(0, 256, (count, *row), np.uint8)


def split(calibration: np.ndarray, held_out: np.ndarray, logits: np.ndarray | None = None) -> CalibrationImages:
    expected = np.arange(2.0 * len(held_out), dtype=np.float32).reshape(-1, 2) if logits is None else logits
    return split_images(calibration, held_out, expected, ROW, lambda pixels: np.zeros((len(pixels), 2), np.float32))


def test_calibrators_are_not_judged_on_the_images_that_set_the_ranges() -> None:
    calibration, held_out = pictures(ENOUGH_IMAGES), pictures(ENOUGH_IMAGES)
    images = split(calibration, held_out)
    assert images.warnings == ()
    fitting, judging = ({image.tobytes() for image in part} for part in (images.fitting, images.judging))
    assert not fitting & judging
    assert fitting | judging == {image.tobytes() for image in calibration}
    assert len(images.judging_logits) == len(images.judging)


def test_held_out_images_that_were_calibrated_on_are_left_out_with_their_logits() -> None:
    calibration, held_out = pictures(ENOUGH_IMAGES), pictures(ENOUGH_IMAGES + 2)
    held_out[[1, 5]] = calibration[[0, 9]]
    images = split(calibration, held_out)
    assert len(images.held_out) == ENOUGH_IMAGES
    assert 2.0 not in images.held_out_logits[:, 0]
    assert images.held_out_logits[1, 0] == 4.0
    assert ["2 of 102" in warning for warning in images.warnings] == [True]


def test_few_images_are_said_and_too_few_refused() -> None:
    warnings = split(pictures(MIN_IMAGES), pictures(ENOUGH_IMAGES)).warnings
    assert [f"only {MIN_IMAGES} images to calibrate" in warning for warning in warnings] == [True]
    with pytest.raises(InputError, match=r"15 images to calibrate.*--images"):
        split(pictures(MIN_IMAGES - 1), pictures(ENOUGH_IMAGES))
    same = pictures(ENOUGH_IMAGES)
    with pytest.raises(InputError, match="0 images to hold INT8 against"):
        split(same, same)


@pytest.mark.parametrize(
    ("calibration", "held_out", "logits", "named"),
    [
        (pictures(20, (4, 4, 3)), pictures(20), None, r"calibration images are uint8 \(20, 4, 4, 3\)"),
        (pictures(20), pictures(20).astype(np.float32), None, "held-out images are float32"),
        (pictures(20), pictures(20), np.zeros((19, 2), np.float32), "20 held-out images came with logits of 19"),
    ],
)
def test_images_of_another_kind_are_refused(calibration, held_out, logits, named: str) -> None:
    with pytest.raises(InputError, match=named):
        split(calibration, held_out, logits)
