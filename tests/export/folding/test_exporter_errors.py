"""What torch's exporters can't do, told to the network's owner: the operator, their line, and a cure that fits."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuseline.export.folding.exporter_errors import explained
from fuseline.export.folding.fold import fold_network
from fuseline.export.folding.trace import trace
from fuseline.export.graph.onnx_graph import onnx_from_network
from fuseline.serve.errors import ArchitectureError
from fuseline.serve.model_package import InputSpec, Preprocessing

SPEC = InputSpec(height=8, width=8, channels=3, preprocessing=Preprocessing(resize_shorter_side=8))


class Network(nn.Module):
    """Something between a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)
        self.middle = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.between(F.relu(self.conv(x))).mean((2, 3)))

    def between(self, x: Tensor) -> Tensor:
        return self.middle(x)


class ReadsAValue(Network):
    def between(self, x: Tensor) -> Tensor:
        return x * float(x.max())


class LoopsOverRows(Network):
    def between(self, x: Tensor) -> Tensor:
        return torch.stack([row * 2 for row in x])


class LeavesTorch(Network):
    def between(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)


class TakesData(Network):
    def between(self, x: Tensor) -> Tensor:
        return x.data * 2


class Copies(Network):
    def between(self, x: Tensor) -> Tensor:
        return copy.copy(x)


class Quantises(Network):
    def between(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255)


class Resizes(Network):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = x.clone().resize_(x.shape)
        return self.linear(x.mean((2, 3)))


class Medians(Network):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x.flatten(2).kthvalue(3)[0]
        return self.linear(x)


class DecomposesAway(Network):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = torch.linalg.svdvals(x.flatten(2))
        return self.linear(x)


class RandomSlope(Network):
    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.RReLU()


class Vmaps(Network):
    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: row * 2)(super().forward(x))


def exported(module: nn.Module) -> None:
    network = fold_network(
        module.eval().requires_grad_(False), mean=(0.5,) * 3, std=(0.2,) * 3, probe=torch.randn(1, 3, 8, 8)
    )
    onnx_from_network(network, SPEC, {})


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (ReadsAValue, ("in between: return x * float(x.max())", "must not branch on values", "torch.where")),
        (LoopsOverRows, ("must not build in the number of rows",)),
        (LeavesTorch, ("in between: return torch.from_numpy(x.numpy() * 2)", "do with torch's operators")),
        (TakesData, (".data", ".clone()")),
        (Copies, ("copy.copy", ".clone()")),
        (Quantises, ("aten.fake_quantize_per_tensor_affine", "export the float network")),
        (Resizes, ("aten.resize_", "in forward: x = x.clone().resize_(x.shape)", "without in-place and out=")),
        (Medians, ("aten.kthvalue", "in forward: x = x.flatten(2).kthvalue(3)[0]", "other operators of torch")),
        (DecomposesAway, ("_linalg_svd", "in forward: x = torch.linalg.svdvals(x.flatten(2))", "other operators")),
        (RandomSlope, ("aten.rrelu_with_noise", "test_exporter_errors.py", "other operators of torch")),
        (Vmaps, ("torch.vmap", "test_exporter_errors.py", "all rows at once")),
    ],
)
def test_the_operator_the_users_line_and_a_cure_are_told(module: type[nn.Module], told: tuple[str, ...]) -> None:
    with pytest.raises(ArchitectureError) as refused:
        exported(module())
    for text in told:
        assert text in str(refused.value)
    assert "site-packages" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_operator_that_no_overload_takes_is_named_from_torchs_own_words() -> None:
    from torch.onnx._internal.fx.passes.type_promotion import find_compatible_op_overload

    class Hypotenuse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.hypot(x, x)

    graph = trace(Hypotenuse(), (3, 8, 8)).graph
    with pytest.raises(RuntimeError, match="Cannot find a compatible OpOverload") as raised:
        find_compatible_op_overload(torch.ops.aten.hypot, ("no tensor",), {})
    sentence = explained(raised.value, graph)
    assert sentence.startswith("aten.hypot: RuntimeError: Cannot find a compatible OpOverload for aten.hypot")
    assert "test_exporter_errors.py, line" in sentence
    assert "in forward: return torch.hypot(x, x); " in sentence
    assert sentence.endswith(
        "other operators of torch that compute the same: without in-place and out= variants, on float32"
    )
