"""Networks to look into, without a checkpoint around them."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from fuseline.export.folding.trace import trace
from fuseline.export.inspection.inspected import Inspection, Layer, layers_of
from fuseline.export.inspection.network_inspection import inspect_network
from fuseline.export.inspection.traced_operations import operations_from_trace
from fuseline.export.network import TrainedNetwork
from fuseline.serve.model_package import Assumption

UNTOLD = Assumption(
    key="stride", value="conv1", meaning="strides are not told by tensors", flag="--assume stride=VALUE"
)


def trained(module: nn.Module, *, side: int = 32, names: Mapping[str, str] | None = None, **facts) -> TrainedNetwork:
    """`module` as though recognised."""
    known = {"architecture": "a network", "evidence": (), "classes": 10, "in_channels": 3} | facts
    return TrainedNetwork(
        module=module.eval().requires_grad_(False),
        layer_names=names or {name: name for name, _ in module.named_modules()},
        default_input_size=side,
        **known,
    )


def look(module: nn.Module, *, side: int = 32, **facts) -> Inspection:
    return inspect_network(trained(module, side=side, **facts), file="x.pt", sha256="0" * 64, notes=())


def layers(module: nn.Module, *, side: int = 32) -> tuple[Layer, ...]:
    """The layers alone: no image is run."""
    return layers_of(operations_from_trace(trace(module.eval(), (3, side, side)), {}), side, side)


def fields(found: Iterable[Layer]) -> dict[str, tuple[int, int] | None]:
    return {layer.name: layer.receptive_field_pixels for layer in found}


def layer(found: Iterable[Layer], name: str) -> Layer:
    return next(layer for layer in found if layer.name == name)


def zeros_of(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(tensor.shape) for name, tensor in state.items()}
