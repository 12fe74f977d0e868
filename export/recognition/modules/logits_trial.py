"""The trial of the user's network: whether it returns one row of logits for each image, whatever its neighbours."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fuseline.serve.errors import ArchitectureError, InputError

# One row and two rows may run by different kernels; a network that mixes rows is off by far more.
_ROW_TOLERANCE = 1e-3
_HOW_TO_RETURN_LOGITS = (
    ", bare or as `logits` of a mapping or an object: let its forward return them alone, such as `return outputs[0]`, "
    "or return a module that wraps it and does"
)


class LogitsOf(nn.Module):
    """A network that returns its logits bare, taken out of the object or mapping that `network` returns."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (rows, classes), float32, of normalised NCHW `images`."""
        logits = logits_of(self.network(images))
        assert logits is not None
        return logits


def logits_of(returned: object) -> Tensor | None:
    """Return the tensor of floats that a network returned, bare or as `logits` of an object or mapping, or None."""
    logits = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", returned)
    return logits if isinstance(logits, Tensor) and logits.is_floating_point() else None


def with_bare_logits(
    module: nn.Module, channels: int, size: tuple[int, int], reference: str
) -> tuple[nn.Module, int, str]:
    """Return a module that returns bare logits, their number, and the prefix that its layers' names now have.

    Raises:
        InputError: `module`, of --factory `reference`, raises on two images of `size` (height, width).
        ArchitectureError: `module` returns no logits (2, classes), or an image's logits depend on its neighbours.
    """
    images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    shape = f"{channels} x {size[0]} x {size[1]}"
    with torch.inference_mode():
        try:
            # Copies, as a network may change its input in place.
            returned = module(images.clone())
            alone = module(images[:1].clone())
        except Exception as error:
            raise InputError(
                f"the network of --factory {reference} raised {type(error).__name__}: {error}, on images of {shape}; "
                "it must take normalised float32 images (rows, channels, height, width); --input-size names other "
                "sizes"
            ) from error
    logits, logits_alone = logits_of(returned), logits_of(alone)
    if logits is None or logits_alone is None or logits.dim() != 2 or len(logits) != 2:
        came = f"a tensor {tuple(logits.shape)}" if logits is not None else f"a {type(returned).__name__}"
        raise ArchitectureError(
            f"the network of --factory {reference} returned {came} for 2 images of {shape}; expected logits "
            f"(2, classes){_HOW_TO_RETURN_LOGITS if logits is None else ''}"
        )
    if bool((logits >= 0).all()) and bool((logits.sum(1) - 1).abs().max() < 1e-4):
        raise ArchitectureError(
            f"the network of --factory {reference} returns probabilities (they are positive and their sum is 1); "
            "expected logits, leave its softmax out: the server applies it"
        )
    spread = float(logits.max() - logits.min())
    if float((logits[:1] - logits_alone).abs().max()) > _ROW_TOLERANCE * spread:
        raise ArchitectureError(
            f"the logits of an image depend on its neighbours in the batch in the network of --factory {reference}; "
            "batching would change answers"
        )
    if isinstance(returned, Tensor):
        return module, logits.shape[1], ""
    return LogitsOf(module).eval(), logits.shape[1], "network."
