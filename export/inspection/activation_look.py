"""The largest values of a network's operations on a few generated images."""

import math
from typing import Any

import torch
from torch import Tensor, fx

NOISE_IMAGES = 2
DARKEST, BRIGHTEST = -2.12, 2.64
"""Black and white after ImageNet's normalisation: (0 - 0.485) / 0.229 and (1 - 0.406) / 0.225."""
MAX_MULTIPLY_ADDS = 200e9
"""Largest number of multiply-adds of all images together; more would take minutes on a laptop, and none is run."""

GENERATED_IMAGES = (
    f"{NOISE_IMAGES} images of normal noise (mean 0, deviation 1) and 2 flat ones ({DARKEST} and {BRIGHTEST}, black "
    "and white as ImageNet's normalisation has them)"
)


def largest_activations(traced: fx.GraphModule, input_shape: tuple[int, int, int]) -> dict[fx.Node, float]:
    """Return the largest magnitude of each node's value, in float32, on the images that `GENERATED_IMAGES` describes.

    A value that isn't finite stays as it is. Images run one by one, so that memory is that of one.
    """
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn((1, *input_shape), generator=generator) for _ in range(NOISE_IMAGES)]
    images += [torch.full((1, *input_shape), value) for value in (DARKEST, BRIGHTEST)]
    largest: dict[fx.Node, float] = {}

    class Observer(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            # Measured at once, as in-place operations overwrite values.
            if n.op == "call_function" and isinstance(result, Tensor) and result.is_floating_point() and result.numel():
                now = float(result.abs().max())
                before = largest.get(n, 0.0)
                largest[n] = before if math.isnan(before) or now <= before else now
            return result

    with torch.inference_mode():
        for image in images:
            Observer(traced).run(image)
    return largest


def image_count() -> int:
    """Return the number of images that `largest_activations` runs."""
    return NOISE_IMAGES + 2
