"""What a package's graphs take: the one place that tells uint8 pixels and normalised floats apart.

An input format is a row of `INPUT_FORMATS`, which manifests, backends, protocols and the export read.
"""

from dataclasses import dataclass
from typing import Literal

InputFormatName = Literal["uint8-nhwc", "fp32-nchw", "fp16-nchw"]
"""Names of `--input`. Each has a row in `INPUT_FORMATS`, in the same order."""
InputDtype = Literal["uint8", "float32", "float16"]
InputLayout = Literal["NHWC", "NCHW"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFormat:
    """One form in which graphs take images, what other software calls it, and its customary tensor names."""

    name: InputFormatName
    dtype: InputDtype
    """Type of the elements, as numpy calls it."""
    layout: InputLayout
    datatype: str
    """Type of the elements in the Open Inference Protocol."""
    onnx_type: str
    """Name of the type in `onnx.TensorProto.DataType`."""
    tensorrt_type: str
    """Name of the type in `tensorrt.DataType`."""
    normalised: bool
    """Whether callers normalise, `(pixel / 255 - mean) / std`, so that the graph doesn't."""
    input_name: str
    """Name of the graphs' input where `--input-name` gives none."""
    output_name: str
    """Name of the graphs' output where `--output-name` gives none."""


INPUT_FORMATS: dict[str, InputFormat] = {
    row.name: row
    for row in (
        InputFormat(
            name="uint8-nhwc",
            dtype="uint8",
            layout="NHWC",
            datatype="UINT8",
            onnx_type="UINT8",
            tensorrt_type="UINT8",
            normalised=False,
            input_name="image",
            output_name="logits",
        ),
        # The others are what torch.onnx.export writes of a training script's network; its own example calls the tensors
        # input and output.
        InputFormat(
            name="fp32-nchw",
            dtype="float32",
            layout="NCHW",
            datatype="FP32",
            onnx_type="FLOAT",
            tensorrt_type="FLOAT",
            normalised=True,
            input_name="input",
            output_name="output",
        ),
        InputFormat(
            name="fp16-nchw",
            dtype="float16",
            layout="NCHW",
            datatype="FP16",
            onnx_type="FLOAT16",
            tensorrt_type="HALF",
            normalised=True,
            input_name="input",
            output_name="output",
        ),
    )
}


def input_format_of(dtype: str, layout: str) -> InputFormat | None:
    """Return the format of elements of `dtype` in `layout`; None if there is none."""
    return next((row for row in INPUT_FORMATS.values() if (row.dtype, row.layout) == (dtype, layout)), None)
