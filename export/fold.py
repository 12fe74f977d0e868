"""BatchNorm and input scaling folded into convolutions, in float64, with the proof that none is left.

At inference a BatchNorm is y = (x - mean) / sqrt(var + eps) * gamma + beta (Ioffe and Szegedy 2015, algorithm 2): a
per-channel gain and offset, which the convolution before it can carry. The division of pixels by 255 * std is a
per-channel gain too, which the first convolution carries; the subtraction of the mean stays in the graph, because a
convolution pads with zeros after it, and a padded pixel must keep meaning "the mean".
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from serve.errors import ArchitectureError

PIXEL_MAX = 255.0


@dataclass(frozen=True, slots=True)
class Fold:
    """One BatchNorm folded into one convolution."""

    convolution: str
    batchnorm: str
    largest_gain: float
    """Largest |gamma / sqrt(var + eps)| of its channels."""
    max_abs_error: float
    """Largest |folded - original| of the pair's output on the probe images, both computed in float32."""
    output_range: float
    """Largest minus smallest of the pair's output on the probe images; what `max_abs_error` is to be held against."""


@dataclass(frozen=True, slots=True)
class FoldedNetwork:
    """A network without BatchNorm that takes pixels of 0..255 with `pixel_mean` already subtracted."""

    module: nn.Module
    pixel_mean: tuple[float, ...]
    """255 * mean of each channel."""
    folds: tuple[Fold, ...]


def fold_network(
    module: nn.Module,
    pairs: Sequence[tuple[str, str]],
    *,
    first_convolution: str,
    mean: Sequence[float],
    std: Sequence[float],
    probe: Tensor,
) -> FoldedNetwork:
    """Fold every BatchNorm of `module`, and the input scaling, into its convolutions. `module` is left as it is.

    Args:
        module: eval mode, float32; takes normalised float32 NCHW images.
        pairs: (convolution, BatchNorm that alone consumes its output) names.
        first_convolution: name of the convolution that alone consumes the input.
        mean, std: per channel, of pixels scaled to 0..1.
        probe: normalised float32 NCHW images, on which each fold's error is measured.

    Raises:
        ArchitectureError: a BatchNorm is in no pair, or a pair can't be folded; the layers are named.
    """
    _check_pairs(module, pairs)
    inputs, outputs = _observe(module, pairs, probe)

    folded = deepcopy(module).double()
    gains: dict[str, float] = {}
    for conv_name, bn_name in pairs:
        conv, bn = folded.get_submodule(conv_name), folded.get_submodule(bn_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(bn, _BatchNorm)
        gains[conv_name] = float(batchnorm_gain(bn).abs().max())
        weight, bias = fold_batchnorm(conv.weight, conv.bias, bn)
        conv.weight, conv.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
        folded.set_submodule(bn_name, nn.Identity())
    check_no_batchnorm(folded)

    folds = tuple(_measure(folded, conv, bn, gains[conv], inputs[conv], outputs[bn]) for conv, bn in pairs)
    first = folded.get_submodule(first_convolution)
    assert isinstance(first, nn.Conv2d)
    scaled = fold_input_scale(first.weight, std)
    first.weight = nn.Parameter(scaled, requires_grad=False)
    return FoldedNetwork(folded.float().eval(), tuple(PIXEL_MAX * value for value in mean), folds)


def fold_batchnorm(weight: Tensor, bias: Tensor | None, bn: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight (out, in/groups, kh, kw) and bias (out,) of the convolution that equals convolution, then `bn`.

    Everything is float64, and so is the result.
    """
    assert bn.running_mean is not None
    gain = batchnorm_gain(bn)
    shift = -bn.running_mean if bias is None else bias - bn.running_mean
    beta = torch.zeros_like(gain) if bn.bias is None else bn.bias
    return (weight * gain.reshape(-1, 1, 1, 1)).detach(), (shift * gain + beta).detach()


def batchnorm_gain(bn: _BatchNorm) -> Tensor:
    """Gamma / sqrt(running_var + eps), shape (channels,), in the BatchNorm's dtype."""
    assert bn.running_var is not None
    gain = torch.rsqrt(bn.running_var + bn.eps)
    return gain if bn.weight is None else bn.weight * gain


def fold_input_scale(weight: Tensor, std: Sequence[float]) -> Tensor:
    """The first convolution's weight (out, in, kh, kw), float64, for pixels of 0..255 instead of pixels / 255 / std."""
    scale = torch.tensor([PIXEL_MAX * value for value in std], dtype=torch.float64)
    return (weight / scale.reshape(1, -1, 1, 1)).detach()


def check_no_batchnorm(module: nn.Module) -> None:
    """Raise `ArchitectureError` naming every BatchNorm left in `module`."""
    left = [name for name, child in module.named_modules() if isinstance(child, _BatchNorm)]
    if left:
        raise ArchitectureError(f"{len(left)} BatchNorm layers were not folded: {', '.join(left)}")


def _check_pairs(module: nn.Module, pairs: Sequence[tuple[str, str]]) -> None:
    for conv_name, bn_name in pairs:
        conv, bn = module.get_submodule(conv_name), module.get_submodule(bn_name)
        if not isinstance(conv, nn.Conv2d) or not isinstance(bn, _BatchNorm):
            kinds = f"{type(conv).__name__} and {type(bn).__name__}"
            raise ArchitectureError(f"{conv_name} and {bn_name} are {kinds}; only Conv2d and BatchNorm2d fold")
        if bn.running_mean is None or bn.running_var is None:
            raise ArchitectureError(f"{bn_name} has no running statistics, so it can't be folded; train with them")
        if conv.out_channels != bn.num_features:
            raise ArchitectureError(f"{conv_name} has {conv.out_channels} outputs, {bn_name} takes {bn.num_features}")


def _observe(
    module: nn.Module, pairs: Sequence[tuple[str, str]], probe: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Input of each pair's convolution and output of its BatchNorm, by their names, when `module` runs on `probe`."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def remember(conv_name: str, bn_name: str) -> Iterator[torch.utils.hooks.RemovableHandle]:
        # The network's in-place ReLUs would overwrite what isn't copied.
        def before(_: nn.Module, taken: tuple[Tensor, ...]) -> None:
            inputs[conv_name] = taken[0].clone()

        def after(_: nn.Module, __: tuple[Tensor, ...], given: Tensor) -> None:
            outputs[bn_name] = given.clone()

        yield module.get_submodule(conv_name).register_forward_pre_hook(before)
        yield module.get_submodule(bn_name).register_forward_hook(after)

    handles = [handle for conv_name, bn_name in pairs for handle in remember(conv_name, bn_name)]
    try:
        with torch.inference_mode():
            module(probe)
    finally:
        for handle in handles:
            handle.remove()
    return inputs, outputs


def _measure(folded: nn.Module, conv_name: str, bn_name: str, gain: float, taken: Tensor, original: Tensor) -> Fold:
    conv = folded.get_submodule(conv_name)
    with torch.inference_mode():
        output = deepcopy(conv).float()(taken)
    return Fold(
        convolution=conv_name,
        batchnorm=bn_name,
        largest_gain=gain,
        max_abs_error=float((output - original).abs().max()),
        output_range=float(original.max() - original.min()),
    )
