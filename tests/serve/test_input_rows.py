"""Pixels as rows of a graph's input, and the check of a client's floats."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fuseline.serve.errors import RequestError
from fuseline.serve.input_format import INPUT_FORMATS
from fuseline.serve.input_rows import check_finite, rows_from_pixels
from fuseline.serve.model_package import InputSpec, Normalization, Preprocessing
from tests.refusals import refusal_of

NORMALIZATION = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), folded=False)


def spec_of(name: str, channels: int = 3) -> InputSpec:
    """An input of 4 x 6 pixels in that format."""
    form = INPUT_FORMATS[name]
    told = {"height": 4, "width": 6, "channels": channels, "dtype": form.dtype, "layout": form.layout}
    return InputSpec.model_validate(told | {"preprocessing": Preprocessing(resize_shorter_side=4)})


def pixels_of(rows: int, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (rows, 4, 6, channels), dtype=np.uint8)


def test_pixels_go_into_a_graph_of_pixels_as_they_are() -> None:
    pixels = pixels_of(2)
    assert rows_from_pixels(pixels, spec_of("uint8-nhwc"), NORMALIZATION) is pixels


@pytest.mark.parametrize("name", ["fp32-nchw", "fp16-nchw"])
def test_floats_are_what_a_torch_client_sends(name: str) -> None:
    torch = pytest.importorskip("torch")
    spec, pixels = spec_of(name), pixels_of(3)
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (NORMALIZATION.mean, NORMALIZATION.std))
    expected = ((planes - mean) / std).numpy()
    rows = rows_from_pixels(pixels, spec, NORMALIZATION)
    assert (rows.shape, rows.dtype) == ((3, *spec.row_shape), spec.row_dtype)
    assert rows.flags.c_contiguous
    np.testing.assert_array_equal(rows, expected.astype(spec.row_dtype))


def test_a_grey_picture_has_one_plane() -> None:
    grey = Normalization(mean=(0.5,), std=(0.25,), folded=False)
    pixels = pixels_of(2, channels=1)
    rows = rows_from_pixels(pixels, spec_of("fp32-nchw", channels=1), grey)
    np.testing.assert_allclose(rows[:, 0], (pixels[..., 0] / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_check_names_the_first_number_that_is_not_finite(dtype: type, bad: float) -> None:
    rows = np.zeros((4, 3, 4, 6), dtype)
    rows[1, 2, 3, 5] = rows[3, 0, 0, 0] = bad
    message = refusal_of(RequestError, check_finite, rows)
    assert f"2 of 4 images, first {bad} at [1, 2, 3, 5]" in message


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
def test_the_largest_and_smallest_finite_numbers_pass(dtype: type) -> None:
    limits = np.finfo(dtype) if np.issubdtype(dtype, np.floating) else np.iinfo(dtype)
    tiny = getattr(limits, "smallest_subnormal", 0)
    check_finite(np.array([[limits.min, limits.max, tiny, -0.0 if tiny else 0]], dtype))


def test_a_view_of_floats_is_checked_as_it_looks() -> None:
    rows = np.zeros((4, 3, 4, 6), np.float16)
    rows[1] = np.nan
    check_finite(rows[::2])
    assert "1 of 2 images" in refusal_of(RequestError, check_finite, rows[::-2])
