"""Networks, their FP32 graphs and pictures for the tests of INT8."""

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from fuseline.benchmarks.harness.pictures import generated_pictures
from fuseline.export.eager import eager_logits, normalised
from fuseline.export.folding.fold import fold_network
from fuseline.export.graph.onnx_graph import onnx_from_network
from fuseline.serve.model_package import InputSpec, Normalization, Preprocessing

NORMALIZATION = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Subject:
    """A network's FP32 graph, and pictures with eager PyTorch's logits of them."""

    model: onnx.ModelProto
    calibration: NDArray[np.uint8]
    held_out: NDArray[np.uint8]
    eager_held_out: NDArray[np.float32]


def fp32_graph(module: nn.Module, side: int = 32) -> onnx.ModelProto:
    folded = fold_network(module, mean=NORMALIZATION.mean, std=NORMALIZATION.std, probe=torch.zeros((1, 3, side, side)))
    spec = InputSpec(height=side, width=side, preprocessing=Preprocessing(resize_shorter_side=side))
    return onnx_from_network(folded, spec, {"labels": ["a", "b"]})


def subject(module: nn.Module, side: int = 32, images: int = 100) -> Subject:
    """With BatchNorm statistics of the pictures, so that activations stay as large as a trained network's, and without
    the classifier's favour for one class, so that pictures differ in theirs.
    """
    pixels = generated_pictures((side, side, 3), 2 * images, seed=3)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    with torch.no_grad():
        module.train()(normalised(pixels[:32], NORMALIZATION))
    module.eval()
    *_, classifier = (child for child in module.modules() if isinstance(child, nn.Linear))
    with torch.no_grad():
        classifier.bias -= module(normalised(pixels[:32], NORMALIZATION)).mean(dim=0)
    held_out = pixels[1::2]
    return Subject(
        fp32_graph(module, side), pixels[::2], held_out, eager_logits(module, held_out, NORMALIZATION, lambda _: None)
    )


def layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
