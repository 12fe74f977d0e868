from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fuseline.export.sample import generated_sample, image_folder
from fuseline.serve.errors import InputError
from fuseline.serve.model_package import InputSpec, Preprocessing

SPEC = InputSpec(height=32, width=40, preprocessing=Preprocessing(resize_shorter_side=32))


def test_generated_images_are_repeatable_and_use_the_whole_range() -> None:
    first, again = generated_sample(SPEC, 6), generated_sample(SPEC, 6)
    assert np.array_equal(first.pixels, again.pixels)
    assert first.pixels.shape == (6, 32, 40, 3)
    assert first.pixels.min() == 0
    assert first.pixels.max() == 255
    assert all(row.std() > 5 for row in first.pixels)


def test_a_folders_images_are_found_below_it_spread_evenly_and_cropped_as_served(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(9):
        shade = np.full((48, 60, 3), number * 20, np.uint8)
        Image.fromarray(shade).save(tmp_path / ("a" if number % 2 else ".") / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    everything = image_folder(tmp_path, 100).sample(SPEC)
    assert everything.pixels.shape == (9, 32, 40, 3)
    some = image_folder(tmp_path, 3).sample(SPEC)
    assert len(some.names) == 3
    assert {some.names[0], some.names[-1]} == {everything.names[0], everything.names[-1]}


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no .jpg"):
        image_folder(tmp_path, 10).sample(SPEC)


def test_quantised_artifacts_are_judged_by_the_half_of_the_images_that_they_are_not_calibrated_on() -> None:
    sample = generated_sample(SPEC, 5)
    assert sample.judging("int8").tolist() == [False, True, False, True, False]
    assert all(sample.judging(precision).all() for precision in ("fp32", "fp16"))
