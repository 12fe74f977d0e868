"""Every architecture as far as its graphs: FP32 and FP16 by ONNX Runtime, and an FP16 engine, of one checkpoint."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from transformers import ResNetConfig, ResNetForImageClassification

from fuseline.export.eager import normalised
from fuseline.export.folding.fold import fold_network
from fuseline.export.fp16.fp16_graph import fp16_from_fp32
from fuseline.export.graph.onnx_graph import onnx_from_network
from fuseline.export.graph.precision_share import check_share
from fuseline.export.recognition.architectures import recognise
from fuseline.export.sample import generated_sample
from fuseline.serve.model_package import InputSpec, Normalization, Preprocessing
from tests.export.recognition.hand_written import TutorialResNet
from tests.export.recognition.preact_resnets import BiasedWideNetwork, PlainReference, PreActNetwork, WideNetwork
from tests.export.resnets import cifar_resnet18, option_a_resnet, trained_like

NORMALIZATION = Normalization(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
NARROW = {"channels": (8, 16, 24, 32), "num_classes": 7}
HUGGINGFACE = {"layer_type": "bottleneck", "embedding_size": 8, "hidden_sizes": [32, 64], "depths": [1, 2]}

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "option A": (lambda: option_a_resnet(20), 32, 0),
    "timm d": (lambda: timm.create_model("resnet18d", **NARROW), 64, 0),
    "timm se": (lambda: timm.create_model("seresnet18", **NARROW), 64, 0),
    "timm v2": (lambda: timm.create_model("resnetv2_18", stem_chs=8, **NARROW), 64, 9),
    "huggingface": (lambda: ResNetForImageClassification(ResNetConfig(num_labels=5, **HUGGINGFACE)), 64, 0),
    "pre-activation": (lambda: PreActNetwork((1, 2, 1, 1), (8, 16, 24, 32)), 32, 5),
    "wide": (lambda: WideNetwork(10, 1), 32, 4),
    "wide, biased": (lambda: BiasedWideNetwork(10, 1), 32, 4),
    "3x3 projections": (lambda: TutorialResNet((1, 1, 1), (8, 16, 32)), 32, 0),
    "fused": (lambda: fuse(trained_like(cifar_resnet18(width=8))), 32, 0),
    "plain": (lambda: PlainReference((8, 8, 8, 16, 16)), 32, 0),
}
"""Name: a network, the side of its images, and how many BatchNorms no convolution can carry."""


def graph_of(reference: nn.Module, side: int) -> tuple[onnx.ModelProto, int]:
    """The FP32 graph, and the number of BatchNorms computed as a scale and a shift."""
    recognised = recognise(reference.state_dict())
    probe = torch.randn(1, 3, side, side)
    folded = fold_network(recognised.module, mean=NORMALIZATION.mean, std=NORMALIZATION.std, probe=probe)
    return onnx_from_network(folded, input_spec(side), {}), len(folded.kept)


def input_spec(side: int) -> InputSpec:
    return InputSpec(height=side, width=side, preprocessing=Preprocessing(resize_shorter_side=side))


def run(graph: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(graph.SerializeToString()).run(["logits"], {"image": pixels})[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpoint_of_every_architecture_becomes_graphs_with_its_logits(name: str) -> None:
    make, side, kept_batchnorms = NETWORKS[name]
    torch.manual_seed(0)
    reference = trained_like(make())
    graph, kept = graph_of(reference, side)
    fp16 = fp16_from_fp32(graph)
    check_share(fp16, "fp16")
    assert kept == kept_batchnorms
    pixels = generated_sample(input_spec(side), 4).pixels
    with torch.inference_mode():
        given = reference(normalised(pixels, NORMALIZATION))
        expected = getattr(given, "logits", given).numpy()
    spread = expected.max() - expected.min()
    assert np.abs(run(graph, pixels) - expected).max() < 1e-4 * spread
    assert np.abs(run(fp16, pixels) - expected).max() < 2e-2 * spread

    pytest.importorskip("tensorrt_rtx", reason="pip install 'fuseline[rtx]' to build engines in tests")
    from fuseline.serve.backends.engine.builder import build_engine

    build = build_engine(fp16.SerializeToString(), precision="fp16", capability="sm89", max_batch=8)
    assert set(build.precision_counts["CONVOLUTION"]) == {"HALF"}


def test_the_same_network_under_two_names_gives_byte_equal_graphs() -> None:
    cifar = trained_like(cifar_resnet18(width=8))
    renamed = nn.Module()
    for name, child in cifar.named_children():
        renamed.add_module("fc" if name == "linear" else name, child)
    assert recognise(cifar.state_dict()).naming != recognise(renamed.state_dict()).naming
    first, second = graph_of(cifar, 32)[0], graph_of(renamed, 32)[0]
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
