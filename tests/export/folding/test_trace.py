import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuseline.export.folding.trace import layer_name, trace
from fuseline.serve.errors import ArchitectureError
from tests.export.resnets import tiny_network


def test_the_graph_computes_what_the_module_does_for_any_batch_and_shares_its_weights() -> None:
    module = tiny_network()
    traced = trace(module, (3, 32, 32))
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(traced(images), module(images))
        torch.testing.assert_close(traced(images[:1]), module(images[:1]))
    assert traced.get_parameter("layer1.0.conv1.weight").data_ptr() == module.layer1[0].conv1.weight.data_ptr()


def test_nodes_have_shapes_and_layers_their_names() -> None:
    nodes = trace(tiny_network(), (3, 32, 32)).graph.find_nodes(
        op="call_function", target=torch.ops.aten.conv2d.default
    )
    assert [layer_name(node) for node in nodes][:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert tuple(nodes[-1].meta["val"].shape[1:]) == (64, 4, 4)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


class BuiltInRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class TwoResults(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((2, 3)), x


class Sigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).sigmoid()


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (Sigmoid(), "ends in a sigmoid"),
        (Branches(), "branch on values"),
        (BuiltInRows(), "number of rows"),
        (TwoResults(), "one tensor of logits"),
    ],
)
def test_what_cannot_be_traced_for_any_batch_is_refused(module: nn.Module, named: str) -> None:
    with pytest.raises(ArchitectureError, match=named):
        trace(module, (3, 8, 8))


def test_global_pooling_becomes_a_mean() -> None:
    class Pools(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)

    traced, images = trace(Pools(), (3, 8, 8)), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(traced(images), images.mean((2, 3)))
    assert not traced.graph.find_nodes(op="call_function", target=torch.ops.aten.adaptive_avg_pool2d.default)
