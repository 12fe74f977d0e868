"""The input of an ONNX graph in memory, and the rows that it takes of pictures.

A written graph says in its metadata what it takes and how that is normalised, as a package's manifest does. So whoever
runs a graph on pictures need not be told.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fuseline.export.graph.operations import Pair
from fuseline.serve.errors import PackageError
from fuseline.serve.input_format import InputLayout
from fuseline.serve.input_rows import rows_from_pixels
from fuseline.serve.model_package import InputSpec, Normalization

INPUT_KEY, NORMALIZATION_KEY = "input", "normalization"
"""Keys of a graph's metadata for the `InputSpec`, without the name, which the graph itself has, and for the
`Normalization`, both as in a manifest."""
SPATIAL_AXES: dict[InputLayout, Pair] = {"NHWC": (-3, -2), "NCHW": (-2, -1)}
"""Axes of height and width, counted from the last, in each layout."""
_PREFIX = "fuseline."


def set_metadata(model: onnx.ModelProto, metadata: Mapping[str, Any]) -> None:
    """Write `metadata` as the metadata properties of `model`, each as JSON under `fuseline.<key>`."""
    onnx.helper.set_model_props(model, {f"{_PREFIX}{key}": json.dumps(value) for key, value in metadata.items()})


def takes_pixels(model: onnx.ModelProto) -> bool:
    """Return whether `model` takes uint8 NHWC pixels; any other takes normalised NCHW floats."""
    return bool(model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8)


def spatial_axes(model: onnx.ModelProto) -> Pair:
    """Return the axes of height and width in the input of `model`, counted from the last."""
    return SPATIAL_AXES["NHWC" if takes_pixels(model) else "NCHW"]


def pixel_shape(model: onnx.ModelProto) -> tuple[int, int, int]:
    """Return (height, width, channels) of the pictures that `model` takes, in whatever form."""
    first, second, third = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:])
    return (first, second, third) if takes_pixels(model) else (second, third, first)


def rows_for(model: onnx.ModelProto, pixels: NDArray[np.uint8]) -> NDArray[Any]:
    """Return the rows that `model` takes for `pixels` (n, height, width, channels), uint8.

    Raises:
        PackageError: `model` takes floats, and its metadata doesn't say how pixels become those.
    """
    if takes_pixels(model):
        return pixels
    texts = {entry.key.removeprefix(_PREFIX): entry.value for entry in model.metadata_props}
    if missing := [key for key in (INPUT_KEY, NORMALIZATION_KEY) if key not in texts]:
        raise PackageError(
            f"the ONNX graph takes normalised floats, but its metadata lacks {', '.join(missing)}; export the model "
            "again"
        )
    spec = InputSpec.model_validate_json(texts[INPUT_KEY])
    return rows_from_pixels(pixels, spec, Normalization.model_validate_json(texts[NORMALIZATION_KEY]))
