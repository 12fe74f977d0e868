import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from fuseline.export.graph.tensor_names import with_tensor_names
from tests.export.float_graphs import graph_taking


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(torch.relu(self.conv(images)).mean(dim=(2, 3)))
        return logits


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    torch.manual_seed(0)
    return graph_taking("fp32-nchw", Tiny().eval(), side=8)


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    (taken,), (given,) = model.graph.input, model.graph.output
    return ort.InferenceSession(model.SerializeToString()).run([given.name], {taken.name: images})[0]


def names_in(model: onnx.ModelProto) -> set[str]:
    """Every tensor but input and output."""
    made = {name for node in model.graph.node for name in node.output} | {t.name for t in model.graph.initializer}
    return made - {model.graph.output[0].name}


def test_the_customary_names_need_no_copy(graph: onnx.ModelProto) -> None:
    assert with_tensor_names(graph, "image", "logits") is graph


@pytest.mark.parametrize("names", [("input", "output"), ("gpu_0/data:0", "scores.1"), ("logits", "image"), ("0", "1")])
def test_any_names_give_the_same_function(graph: onnx.ModelProto, names: tuple[str, str]) -> None:
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    before = graph.SerializeToString(deterministic=True)
    named = with_tensor_names(graph, *names)
    onnx.checker.check_model(named, full_check=True)
    assert (named.graph.input[0].name, named.graph.output[0].name) == names
    np.testing.assert_array_equal(run(named, images), run(graph, images))
    assert graph.SerializeToString(deterministic=True) == before


def test_every_other_tensor_steps_aside_for_a_clients_name(graph: onnx.ModelProto) -> None:
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    inner = sorted(names_in(graph))
    assert {"conv.weight", "fc.bias"} < set(inner)
    for name in inner:
        for names in ((name, "output"), ("input", name)):
            named = with_tensor_names(graph, *names)
            onnx.checker.check_model(named, full_check=True)
            assert name not in names_in(named)
            assert f"{name}_2" in names_in(named)
            np.testing.assert_array_equal(run(named, images), run(graph, images))
    both = with_tensor_names(graph, "conv.weight", "conv.weight_2")
    assert "conv.weight_3" in names_in(both)
    np.testing.assert_array_equal(run(both, images), run(graph, images))
