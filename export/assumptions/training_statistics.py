"""Whether a network sees images as it did in training, by the statistics of its BatchNorms.

Each BatchNorm carries the mean and variance that its input had in training (Ioffe and Szegedy 2015, algorithm 2).
Pictures of the same kind, normalised and resized in the same way, give about the same statistics in a network of the
same strides. Where they don't, something is wrong that no tensor tells, and that no comparison with PyTorch finds, as
PyTorch would be fed the same.
"""

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

MIN_IMAGES = 8
"""Smallest number of images that says anything about a population."""
MAX_IMAGES = 64
USUAL_VARIANCE_FACTOR = 1.5
"""Largest `variance_factor` of a network that is used as it was trained. A trained ResNet-20 has 1.15 on held-out
pictures, and 1.21 on 8 of them; 2.1 with pixels scaled by 0.5 and 0.5 instead of ImageNet's mean and std, 1.9 with a
max-pool that it was trained without, 2.7 at twice its input size."""
USUAL_MEAN_SHIFT = 0.25
"""Largest `mean_shift`, in standard deviations. The same network has 0.07, on 8 pictures 0.09; 23 with unnormalised
pixels of 0..255."""
USUAL_MISFIT = 0.35
"""Largest `misfit`. The same network has 0.13, on 8 pictures 0.18; 0.15 with CIFAR-10's normalisation, 0.40 with 0.5
and 0.5; 0.46 with zeros after instead of around in its shortcuts, 0.57 with a max-pool, 0.59 at twice its input
size."""
_LATE_SHARE = 4
_MOST_MISFIT = 10.0
# Channels that hardly vary in training have no scale to compare by.
_LEAST_VARIANCE = 1e-3


@dataclass(frozen=True, slots=True)
class TrainingStatistics:
    """How the inputs of BatchNorms compare with what they were in training."""

    images: int
    batchnorms: int
    variance_factor: float
    """Factor, at least 1, by which the variance is larger or smaller than in training: median over channels, layers."""
    mean_shift: float
    """|mean - mean in training| in standard deviations of the training: median over channels and layers."""
    misfit: float
    """Distance of the distributions in standard deviations, sqrt(2 KL) at the median channel. It is the mean of two
    means: over all layers, and over the last quarter of them, as only these show a difference near the end."""

    @property
    def as_in_training(self) -> bool:
        """Whether all three figures are within what pictures of the same kind give."""
        return (
            self.variance_factor <= USUAL_VARIANCE_FACTOR
            and self.mean_shift <= USUAL_MEAN_SHIFT
            and self.misfit <= USUAL_MISFIT
        )

    @property
    def described(self) -> str:
        """What was found, for people."""
        return (
            f"on {self.images} images the variance is off by a factor of {self.variance_factor:.2f} and the mean by "
            f"{self.mean_shift:.2f} standard deviations at the median BatchNorm, misfit {self.misfit:.2f}"
        )

    @property
    def doubt(self) -> str:
        """What it means if the statistics aren't `as_in_training`, for people."""
        return (
            f"the network's activations are not those that its BatchNorms saw in training: {self.described} (usual are "
            f"at most {USUAL_VARIANCE_FACTOR}, {USUAL_MEAN_SHIFT} and {USUAL_MISFIT}). The images are of another kind, "
            "or the normalisation (--mean, --std), the input size or a stride that tensors don't tell is not as in "
            "training"
        )


def training_statistics(module: nn.Module, images: Tensor) -> TrainingStatistics | None:
    """Compare the inputs of `module`'s BatchNorms on `images` with their running statistics.

    Args:
        module: eval mode, float32.
        images: normalised float32 NCHW; the first `MAX_IMAGES` are used.

    Returns:
        None with fewer than `MIN_IMAGES` images, or if no BatchNorm module has statistics to compare with.
    """
    if len(images) < MIN_IMAGES:
        return None
    return observed(module, images[:MAX_IMAGES])[1]


def observed(module: nn.Module, images: Tensor) -> tuple[Tensor, TrainingStatistics | None]:
    """Return the logits (rows, classes) of `images`, and the comparison on them; None without BatchNorms."""
    layers: list[_LayerFit] = []

    def compare(batchnorm: nn.Module, taken: tuple[Tensor, ...]) -> None:
        assert isinstance(batchnorm, _BatchNorm)
        if (fit := _layer_fit(batchnorm, taken[0])) is not None:
            layers.append(fit)

    batchnorms = [child for child in module.modules() if isinstance(child, _BatchNorm)]
    handles = [child.register_forward_pre_hook(compare) for child in batchnorms]
    try:
        with torch.inference_mode():
            logits: Tensor = module(images)
    finally:
        for handle in handles:
            handle.remove()
    if not layers:
        return logits, None
    late = layers[-max(1, len(layers) // _LATE_SHARE) :]
    return logits, TrainingStatistics(
        images=len(images),
        batchnorms=len(layers),
        variance_factor=math.exp(statistics.median(layer.log_factor for layer in layers)),
        mean_shift=statistics.median(layer.shift for layer in layers),
        misfit=statistics.fmean((_mean_misfit(layers), _mean_misfit(late))),
    )


@dataclass(frozen=True, slots=True)
class _LayerFit:
    """How the input of one BatchNorm compares: medians over its channels."""

    log_factor: float
    shift: float
    misfit: float


def _layer_fit(batchnorm: _BatchNorm, features: Tensor) -> _LayerFit | None:
    if batchnorm.running_mean is None or batchnorm.running_var is None:
        return None
    axes = [axis for axis in range(features.dim()) if axis != 1]
    variance, mean = torch.var_mean(features, dim=axes)
    live = batchnorm.running_var > _LEAST_VARIANCE
    if not live.any():
        return None
    trained = batchnorm.running_var[live]
    # An activation that never varies on these images gets a bounded factor, not an infinite one.
    seen = variance[live].clamp(min=_LEAST_VARIANCE)
    log_factor = (seen / trained).log()
    shift = (mean - batchnorm.running_mean)[live].abs() / trained.sqrt()
    # Kullback-Leibler divergence of two normal distributions; its root grows as a number of standard deviations does.
    divergence = (seen / trained + shift.square() - 1 - log_factor) / 2
    return _LayerFit(
        float(log_factor.abs().median()),
        float(shift.median()),
        min(float((2 * divergence.clamp(min=0)).sqrt().median()), _MOST_MISFIT),
    )


def _mean_misfit(layers: list[_LayerFit]) -> float:
    return statistics.fmean(layer.misfit for layer in layers)
