"""What a manifest says of the graphs' input, and the manifests that contradict themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fuseline.serve.input_format import INPUT_FORMATS
from fuseline.serve.model_package import InputSpec, Manifest, load_package
from tests.fakes.colours import write_colours_package

FORMATS = tuple(INPUT_FORMATS)


@pytest.mark.parametrize(
    ("takes", "shape", "dtype", "datatype", "names"),
    [
        ("uint8-nhwc", (8, 8, 3), np.uint8, "UINT8", ("image", "logits")),
        ("fp32-nchw", (3, 8, 8), np.float32, "FP32", ("input", "output")),
        ("fp16-nchw", (3, 8, 8), np.float16, "FP16", ("input", "output")),
    ],
)
def test_a_manifest_says_what_rows_are(
    tmp_path: Path, takes: str, shape: tuple[int, ...], dtype: type, datatype: str, names: tuple[str, str]
) -> None:
    manifest = load_package(write_colours_package(tmp_path / "package", takes=takes)).manifest
    spec = manifest.input
    assert (spec.row_shape, spec.row_dtype, spec.datatype) == (shape, np.dtype(dtype), datatype)
    assert spec.pixel_shape == (8, 8, 3)
    assert spec.format is INPUT_FORMATS[takes]
    assert (spec.name, manifest.output_name) == names
    assert manifest.normalization.folded == (takes == "uint8-nhwc")


def test_a_manifest_from_before_there_were_formats_is_of_pixels(tmp_path: Path) -> None:
    manifest = load_package(write_colours_package(tmp_path / "package")).manifest
    plain = manifest.model_dump(mode="json")
    for key in ("name", "dtype", "layout"):
        del plain["input"][key]
    del plain["output_name"], plain["normalization"]["folded"]
    assert Manifest.model_validate(plain) == manifest


def test_every_pair_of_type_and_layout_but_the_formats_is_refused() -> None:
    for dtype in ("uint8", "float32", "float16"):
        for layout in ("NHWC", "NCHW"):
            told = {"height": 8, "width": 8, "dtype": dtype, "layout": layout}
            told |= {"preprocessing": {"resize_shorter_side": 8}}
            if any((row.dtype, row.layout) == (dtype, layout) for row in INPUT_FORMATS.values()):
                InputSpec.model_validate(told)
            else:
                with pytest.raises(ValidationError, match=f"no graph takes {dtype} {layout}; one of uint8 NHWC, float"):
                    InputSpec.model_validate(told)


CONTRADICTIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "floats that the graph normalises": ("fp32-nchw", {"normalization": {"folded": True}}, "folded is True"),
    "pixels that nobody normalises": ("uint8-nhwc", {"normalization": {"folded": False}}, "folded is False"),
    "folded that is no boolean": ("fp32-nchw", {"normalization": {"folded": 0}}, "valid boolean"),
    "one name for both": ("fp32-nchw", {"output_name": "input"}, "input and output have one name, 'input'"),
    "an empty name": ("fp32-nchw", {"input": {"name": ""}}, "pattern"),
    "a name with a space": ("fp32-nchw", {"input": {"name": "my input"}}, "pattern"),
    "a name that ends in a line": ("fp32-nchw", {"output_name": "output\n"}, "pattern"),
    "an unknown type": ("fp32-nchw", {"input": {"dtype": "float64"}}, "float16"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, case: str) -> None:
    takes, changes, words = CONTRADICTIONS[case]
    plain = load_package(write_colours_package(tmp_path / "package", takes=takes)).manifest.model_dump(mode="json")
    for key, value in changes.items():
        plain[key] = plain[key] | value if isinstance(value, dict) else value
    with pytest.raises(ValidationError, match=words):
        Manifest.model_validate(plain)
