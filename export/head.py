"""A classifier for a backbone that has none: the one linear layer of another checkpoint."""

from torch import Tensor

from export.checkpoint import Checkpoint
from serve.errors import CheckpointError

_SHOWN = 6


def head_from(checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """Weight (classes, features) and bias (classes,) of the only linear layer in `checkpoint`, float32.

    A whole ResNet will do: its classifier is the only two-dimensional weight it has.

    Raises:
        CheckpointError: there is no linear layer, or more than one, or it has no bias of its size.
    """
    found = {name: tensor for name, tensor in checkpoint.tensors.items() if tensor.ndim == 2}
    if len(found) != 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(found.items())[:_SHOWN])
        rest = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise CheckpointError(
            f"{checkpoint.path}: a classifier was expected, one weight (classes, features) with its bias, but it holds "
            f"{f'{len(found)} two-dimensional weights: {shapes}{rest}' if found else 'none'}; save the linear layer "
            "alone: torch.save(head.state_dict(), PATH)"
        )
    ((name, weight),) = found.items()
    bias_name = name.removesuffix("weight") + "bias"
    bias = checkpoint.tensors.get(bias_name)
    if not name.endswith("weight") or bias is None or bias.ndim != 1:
        came = "no such tensor" if bias is None else f"{bias_name} {tuple(bias.shape)}"
        raise CheckpointError(
            f"{checkpoint.path}: the classifier {name} {tuple(weight.shape)} needs its bias (classes,) beside it as "
            f"{bias_name}; there is {came}. A layer without one gets zeros: torch.zeros({weight.shape[0]})"
        )
    return weight, bias
