"""Folding of BatchNorm and input scaling into the layers of a traced network, with proof that no BatchNorm is left.

A BatchNorm folds into a convolution or linear layer whose output it alone consumes, if the weights of both are used
once. Any other BatchNorm (before a convolution, as in pre-activation networks; shared; behind a layer that others read
too) becomes the per-channel scale and shift that it is at inference, and is named.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fuseline.export.folding.fold_math import PIXEL_MAX, BatchNormTensors, fold_batchnorm, fold_input_scale, input_scale
from fuseline.export.folding.trace import layer_name, trace
from fuseline.serve.errors import ArchitectureError

_ATEN = torch.ops.aten
_CONVOLUTIONS = tuple(
    getattr(getattr(_ATEN, name), overload)
    for name in ("conv1d", "conv2d", "conv3d")
    for overload in ("default", "padding")
)
_FOLDABLE = (*_CONVOLUTIONS, _ATEN.linear.default)


@dataclass(frozen=True, slots=True)
class Fold:
    """One BatchNorm folded into one convolution or linear layer."""

    convolution: str
    batchnorm: str
    largest_gain: float
    """Largest |gamma / sqrt(var + eps)| of the channels."""
    max_abs_error: float
    """Largest |folded - original| of the pair's output on the probe images, both computed in float32."""
    output_range: float
    """Largest minus smallest value of the pair's output on the probe images, to compare `max_abs_error` with."""


@dataclass(frozen=True, slots=True)
class KeptBatchNorm:
    """One BatchNorm that folds into nothing and is computed as a scale and a shift."""

    batchnorm: str
    reason: str


@dataclass(frozen=True, slots=True)
class FoldedNetwork:
    """A network without BatchNorm; it takes pixels of 0..255 with `pixel_mean` subtracted, or normalised images."""

    module: fx.GraphModule
    pixel_mean: tuple[float, ...] | None
    """255 * mean of each channel; None where the network takes images that are normalised already."""
    pixel_scale: tuple[float, ...] | None
    """Factor of each channel by which centred pixels must still be multiplied; None where the first convolution does
    it, or nothing is to be done."""
    folds: tuple[Fold, ...]
    kept: tuple[KeptBatchNorm, ...]

    @property
    def scale_folded(self) -> bool:
        """Whether the first convolution carries the division of pixels by 255 * std."""
        return self.pixel_mean is not None and self.pixel_scale is None


def fold_network(
    module: nn.Module, *, mean: Sequence[float], std: Sequence[float], probe: Tensor, takes_pixels: bool = True
) -> FoldedNetwork:
    """Fold those of `module`'s BatchNorms that can be folded, and the input scaling. `module` isn't changed.

    Args:
        module: eval mode, float32; takes normalised float32 NCHW images, any number of them.
        mean: mean of each channel, of pixels scaled to 0..1.
        std: standard deviation of each channel, as `mean`.
        probe: normalised float32 NCHW images, on which each fold's error is measured.
        takes_pixels: whether the folded network is to take pixels; else it goes on to take normalised images, and no
            input scaling is folded.

    Raises:
        ArchitectureError: the network can't be traced, or a BatchNorm, which is named, normalises by its batch.
    """
    traced = trace(module, (probe.shape[1], probe.shape[2], probe.shape[3]))
    batchnorms = traced.graph.find_nodes(op="call_function", target=_ATEN.batch_norm.default)
    obstacles = {node: why_not_folded(node) for node in batchnorms}
    pairs = [(_argument(node, 0), node) for node, why in obstacles.items() if why is None]
    inputs, outputs = _observe(traced, pairs, probe)

    folds = []
    for layer, batchnorm in pairs:
        tensors = batchnorm_tensors(traced, batchnorm)
        weight, bias = fold_batchnorm(_tensor(traced, layer, 1), _optional_tensor(traced, layer, 2), tensors)
        names = layer_name(layer), layer_name(batchnorm)
        _set_weights(traced, layer, weight, bias)
        batchnorm.replace_all_uses_with(layer)
        traced.graph.erase_node(batchnorm)
        folds.append(_measure(traced, layer, names, float(tensors.gain.abs().max()), inputs[layer], outputs[batchnorm]))
    kept = tuple(KeptBatchNorm(layer_name(node), why) for node, why in obstacles.items() if why is not None)
    for node, why in obstacles.items():
        if why is not None:
            _write_as_scale_and_shift(traced, node)

    first = _first_convolution(traced.graph) if takes_pixels else None
    if first is not None:
        scaled = fold_input_scale(_tensor(traced, first, 1), std)
        _set_tensor(traced, str(_argument(first, 1).target), scaled)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    folded = fx.GraphModule(traced, traced.graph).eval().float()
    check_no_batchnorm(folded)
    return FoldedNetwork(
        module=folded,
        pixel_mean=tuple(PIXEL_MAX * value for value in mean) if takes_pixels else None,
        pixel_scale=None if first is not None or not takes_pixels else tuple(input_scale(std).tolist()),
        folds=tuple(folds),
        kept=kept,
    )


def check_no_batchnorm(traced: fx.GraphModule) -> None:
    """Raise `ArchitectureError` naming every BatchNorm left in `traced`."""
    left = [node.name for node in traced.graph.nodes if "batch_norm" in str(node.target) and node.op == "call_function"]
    if left:
        raise ArchitectureError(f"{len(left)} BatchNorm layers were not folded: {', '.join(left)}")


def why_not_folded(batchnorm: fx.Node) -> str | None:
    """Return why `batchnorm`, a node of a traced network, can't be folded; None if it can.

    Raises:
        ArchitectureError: `batchnorm` normalises by its batch, so that there is nothing to fold.
    """
    name = layer_name(batchnorm)
    if batchnorm.args[5]:
        raise ArchitectureError(
            f"{name} normalises by the statistics of its batch, so an image's logits would depend on its neighbours; "
            "train with running statistics (track_running_stats=True) and export in eval mode"
        )
    layer = _argument(batchnorm, 0)
    if layer.target not in _FOLDABLE:
        before = "the input" if layer.op == "placeholder" else f"the output of {_operator_name(layer)}"
        return f"it takes {before}; only a convolution or linear layer right before it could carry it"
    weights = layer.all_input_nodes[1:]
    if any(weight.op != "get_attr" for weight in weights):
        return "the weights of the layer before it are computed by the network"
    if len(layer.users) > 1:
        return f"the layer before it has {len(layer.users)} consumers"
    if any(len(weight.users) > 1 for weight in weights):
        return f"the layer before it is used {max(len(weight.users) for weight in weights)} times"
    own = batchnorm.all_input_nodes[1:]
    if any(tensor.op != "get_attr" for tensor in own):
        return "its statistics are computed by the network"
    if any(len(tensor.users) > 1 for tensor in own):
        return f"it is used {max(len(tensor.users) for tensor in own)} times"
    if layer.target == _ATEN.linear.default and layer.meta["val"].dim() != 2:
        return "it normalises another axis than the linear layer's features"
    return None


def _first_convolution(graph: fx.Graph) -> fx.Node | None:
    """Return the convolution that alone takes the input, all channels at once, and alone uses its weights, or None."""
    (placeholder,) = graph.find_nodes(op="placeholder")
    # A node that asks for the number of rows doesn't use the pixels.
    users = [user for user in placeholder.users if user.target is not _ATEN.sym_size.int]
    if len(users) != 1 or users[0].target not in _CONVOLUTIONS:
        return None
    weight = _argument(users[0], 1)
    if weight.op != "get_attr" or len(weight.users) > 1:
        return None
    # A grouped convolution's weight doesn't have the input's channels in its second dimension.
    return users[0] if weight.meta["val"].shape[1] == placeholder.meta["val"].shape[1] else None


def _observe(
    traced: fx.GraphModule, pairs: Sequence[tuple[fx.Node, fx.Node]], probe: Tensor
) -> tuple[dict[fx.Node, Tensor], dict[fx.Node, Tensor]]:
    """Return each pair's layer -> its input, and BatchNorm -> its output, when `traced` runs on `probe`."""
    layers, batchnorms = {layer for layer, _ in pairs}, {batchnorm for _, batchnorm in pairs}
    inputs: dict[fx.Node, Tensor] = {}
    outputs: dict[fx.Node, Tensor] = {}

    class Observer(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            # Clones, as in-place ReLUs would overwrite the values.
            if n in layers:
                inputs[n] = self.env[_argument(n, 0)].clone()
            result = super().run_node(n)
            if n in batchnorms:
                assert isinstance(result, Tensor)
                outputs[n] = result.clone()
            return result

    with torch.inference_mode():
        Observer(traced).run(probe)
    return inputs, outputs


def _measure(
    traced: fx.GraphModule, layer: fx.Node, names: tuple[str, str], gain: float, taken: Tensor, original: Tensor
) -> Fold:
    weight, bias = (_tensor(traced, layer, index).float() for index in (1, 2))
    assert callable(layer.target)
    with torch.inference_mode():
        output = layer.target(taken, weight, bias, *layer.args[3:], **layer.kwargs)
    return Fold(
        convolution=names[0],
        batchnorm=names[1],
        largest_gain=gain,
        max_abs_error=float((output - original).abs().max()),
        output_range=float(original.max() - original.min()),
    )


def _write_as_scale_and_shift(traced: fx.GraphModule, batchnorm: fx.Node) -> None:
    tensors = batchnorm_tensors(traced, batchnorm)
    shape = (-1, *[1] * (batchnorm.meta["val"].dim() - 2))
    value = _argument(batchnorm, 0)
    for operator, leaf, tensor in (
        (_ATEN.mul.Tensor, "scale", tensors.gain),
        (_ATEN.add.Tensor, "shift", tensors.offset),
    ):
        target = _beside(traced, _argument(batchnorm, 3), leaf)
        _set_tensor(traced, target, tensor.reshape(shape))
        with traced.graph.inserting_before(batchnorm):
            value = traced.graph.call_function(operator, (value, traced.graph.get_attr(target)))
        value.meta = dict(batchnorm.meta)
    batchnorm.replace_all_uses_with(value)
    traced.graph.erase_node(batchnorm)


def _set_weights(traced: fx.GraphModule, layer: fx.Node, weight: Tensor, bias: Tensor) -> None:
    given = layer.args[2] if len(layer.args) > 2 else None
    target = str(given.target) if isinstance(given, fx.Node) else _beside(traced, _argument(layer, 1), "bias")
    _set_tensor(traced, str(_argument(layer, 1).target), weight)
    _set_tensor(traced, target, bias)
    if given is None:
        with traced.graph.inserting_before(layer):
            layer.args = (*layer.args[:2], traced.graph.get_attr(target), *layer.args[3:])


def _beside(traced: fx.GraphModule, tensor: fx.Node, leaf: str) -> str:
    """Return a new name in `traced` for a tensor that belongs to the same layer as `tensor`."""
    owner, _, own_leaf = str(tensor.target).rpartition(".")
    module_has_it = owner and own_leaf in ("weight", "running_mean")
    wanted = f"{owner}.{leaf}" if module_has_it else f"{tensor.target}_{leaf}"
    numbered = (f"{wanted}_{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain((wanted,), numbered) if not _has(traced, name))


def _has(traced: fx.GraphModule, target: str) -> bool:
    owner, _, leaf = target.rpartition(".")
    return hasattr(traced.get_submodule(owner), leaf)


def batchnorm_tensors(traced: fx.GraphModule, batchnorm: fx.Node) -> BatchNormTensors:
    """Return the tensors of `batchnorm`, a node of `traced`, in float64."""
    eps = batchnorm.args[7]
    assert isinstance(eps, float)
    return BatchNormTensors(
        gamma=_optional_tensor(traced, batchnorm, 1),
        beta=_optional_tensor(traced, batchnorm, 2),
        running_mean=_tensor(traced, batchnorm, 3),
        running_var=_tensor(traced, batchnorm, 4),
        eps=eps,
    )


def _argument(node: fx.Node, index: int) -> fx.Node:
    argument = node.args[index]
    assert isinstance(argument, fx.Node)
    return argument


def _tensor(traced: fx.GraphModule, node: fx.Node, index: int) -> Tensor:
    """Return the tensor that is `node`'s argument number `index`, in float64."""
    value = attribute(traced, str(_argument(node, index).target))
    return value.detach().double()


def _optional_tensor(traced: fx.GraphModule, node: fx.Node, index: int) -> Tensor | None:
    given = len(node.args) > index and node.args[index] is not None
    return _tensor(traced, node, index) if given else None


def attribute(module: nn.Module, target: str) -> Tensor:
    """Return the tensor of `module` called `target`, such as `layer1.0.conv1.weight`."""
    owner, _, leaf = target.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(owner), leaf)
    return tensor


def _set_tensor(traced: fx.GraphModule, target: str, tensor: Tensor) -> None:
    """Set the tensor `target` of `traced`; the network that it was traced from keeps its own."""
    owner, _, leaf = target.rpartition(".")
    setattr(traced.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))


def _operator_name(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0].strip("_")
