"""FP32 graphs of small networks in every input format, with what they say of their input."""

import onnx
import torch
from torch import nn

from fuseline.export.folding.fold import fold_network
from fuseline.export.graph.onnx_graph import onnx_from_network
from fuseline.serve.input_format import INPUT_FORMATS
from fuseline.serve.model_package import InputSpec, Normalization, Preprocessing

FLOATS = ["fp32-nchw", "fp16-nchw"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALIZATION = Normalization(mean=MEAN, std=STD)
"""As eager PyTorch needs it; a graph says for itself whether it normalises."""


def spec_of(takes: str, side: int = 32) -> InputSpec:
    form = INPUT_FORMATS[takes]
    told = {"height": side, "width": side, "dtype": form.dtype, "layout": form.layout}
    return InputSpec.model_validate(told | {"preprocessing": Preprocessing(resize_shorter_side=side)})


def graph_taking(takes: str, module: nn.Module, side: int = 32) -> onnx.ModelProto:
    """The FP32 graph of `module`, eval mode, as an export writes it before its tensors get their names."""
    form = INPUT_FORMATS[takes]
    folded = fold_network(
        module, mean=MEAN, std=STD, probe=torch.randn(1, 3, side, side), takes_pixels=not form.normalised
    )
    spec = spec_of(takes, side)
    normalization = NORMALIZATION.model_copy(update={"folded": not form.normalised})
    metadata = {"input": spec.model_dump(mode="json"), "normalization": normalization.model_dump(mode="json")}
    return onnx_from_network(folded, spec, metadata)
