import io

import numpy as np
import pytest
from PIL import Image

from fuseline.export.inspection.filters import MAX_PICTURE_SIDE, filters_picture


def pixels_of(weight: np.ndarray) -> np.ndarray:
    picture = filters_picture(weight.astype(np.float32))
    image = Image.open(io.BytesIO(picture.png))
    assert image.size == (picture.width, picture.height)
    return np.asarray(image)


def test_three_channels_are_colour_normalised_around_mid_grey() -> None:
    weight = np.zeros((2, 3, 1, 2))
    weight[0, :, 0, 0] = (0.5, -0.25, 0.0)
    weight[1, :, 0, 1] = (0.0, 0.0, -1000.0)
    pixels = pixels_of(weight)
    # Tiles of 24 x 48 pixels, each weight a square of 24, in a grid of 2 pixels of white.
    assert pixels.shape[2] == 3
    assert (pixels[0, 0] == 255).all()
    assert tuple(pixels[4, 4]) == (255, 64, 128), "the largest magnitude is full; half of it below zero a quarter"
    assert tuple(pixels[4, 40]) == (128, 128, 128), "zero is mid-grey"
    tiles = {tuple(colour) for colour in pixels.reshape(-1, 3)}
    assert (128, 128, 0) in tiles, "each filter by its own largest weight"


@pytest.mark.parametrize(("channels", "tiles"), [(1, 5), (2, 10), (4, 20)])
def test_other_channel_counts_are_grey_tiles(channels: int, tiles: int) -> None:
    weight = np.random.default_rng(0).normal(size=(5, channels, 3, 3))
    assert pixels_of(weight).ndim == 2
    assert filters_picture(weight.astype(np.float32)).width % 50 == 2
    assert f"over {channels} channel" in filters_picture(weight.astype(np.float32)).caption


@pytest.mark.parametrize(
    "shape",
    [(1, 3, 1, 1), (64, 3, 7, 7), (2048, 3, 1, 1), (300, 4, 3, 3), (6, 3, 700, 600), (8, 1, 1, 9), (100, 3, 224, 224)],
    ids=str,
)
def test_a_picture_is_of_bounded_and_readable_size(shape: tuple[int, int, int, int]) -> None:
    picture = filters_picture(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    assert 10 < picture.height <= MAX_PICTURE_SIDE
    assert 40 < picture.width <= MAX_PICTURE_SIDE


def test_what_is_left_out_is_said() -> None:
    picture = filters_picture(np.ones((2000, 3, 3, 3), np.float32))
    assert picture.caption.endswith("the first 256 of 2000 tiles")
    assert "tiles" not in filters_picture(np.ones((64, 3, 3, 3), np.float32)).caption


def test_filters_of_zeros_are_grey() -> None:
    assert set(np.unique(pixels_of(np.zeros((4, 3, 3, 3))))) == {128, 255}
