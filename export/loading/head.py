"""The classifier for a backbone that has none: a linear layer of another checkpoint."""

from torch import Tensor

from fuseline.export.checkpoint.checkpoint import Checkpoint
from fuseline.export.recognition.classifier import Head, described, named_classifier, zeros_for
from fuseline.serve.errors import ArchitectureError, CheckpointError


def head_from(checkpoint: Checkpoint, name: str | None = None) -> Head:
    """Return weight (classes, features) and bias (classes,) of the linear layer `name` in `checkpoint`, float32.

    A whole ResNet needs no name: its classifier is the only two-dimensional weight that it has. A layer without a bias
    gets zeros.

    Raises:
        CheckpointError: there is no linear layer, none is called `name`, there are several and no name, or the bias
            doesn't have one dimension.
    """
    found = {tensor_name: tensor for tensor_name, tensor in checkpoint.tensors.items() if tensor.ndim == 2}
    if name is not None:
        return _with_bias(checkpoint, f"{_named(checkpoint, name)}.weight")
    if len(found) != 1:
        holds = f"{len(found)} two-dimensional weights: {described(found)}" if found else "none"
        several = " Where one of them is the classifier alone, --head NAME says which." if found else ""
        raise CheckpointError(
            f"{checkpoint.path}: a classifier was expected, one weight (classes, features), but it holds {holds}; save "
            f"the linear layer alone: torch.save(head.state_dict(), PATH).{several}"
        )
    return _with_bias(checkpoint, next(iter(found)))


def _named(checkpoint: Checkpoint, name: str) -> str:
    try:
        return named_classifier(checkpoint.tensors, name)
    except ArchitectureError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error


def _with_bias(checkpoint: Checkpoint, name: str) -> Head:
    weight: Tensor = checkpoint.tensors[name]
    bias_name = name.removesuffix("weight") + "bias"
    bias = checkpoint.tensors.get(bias_name) if name.endswith("weight") else None
    if bias is None:
        return weight, zeros_for(weight)
    if bias.ndim != 1:
        raise CheckpointError(
            f"{checkpoint.path}: the classifier {name} {tuple(weight.shape)} needs its bias (classes,) beside it as "
            f"{bias_name}; there is {bias_name} {tuple(bias.shape)}: save it with shape ({weight.shape[0]},)"
        )
    return weight, bias
