"""The user's own network: built by their function, loaded strictly from the checkpoint, and tried before it is trusted.

It is the way for everything that can't be told from tensors. The function is named by the user, so its code is run;
code that lies in a checkpoint never is.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from export.checkpoint import Checkpoint
from export.logits_trial import with_bare_logits
from export.network import TrainedNetwork
from export.strict_loading import load_strictly
from export.users_code import built_module

DEFAULT_INPUT_SIDE = 224


def network_from_factory(
    reference: str,
    arguments: Mapping[str, Any],
    checkpoint: Checkpoint,
    input_size: tuple[int, int] | None = None,
) -> TrainedNetwork:
    """The network that `reference` (`package.module:function`) builds, with the weights of `checkpoint`.

    The module takes normalised float32 NCHW images and returns logits (rows, classes), or an object or mapping with
    `logits`. Modules beside the current folder are found.

    Args:
        reference: the function or class; called with `arguments` by keyword.
        arguments: plain values.
        checkpoint: its tensors must be the module's, by name and shape, all of them.
        input_size: (height, width) in pixels on which the module is tried; default: the checkpoint's, else 224.

    Raises:
        InputError: `reference` names nothing that can be called, its code raises, or it gives no `nn.Module`.
        ArchitectureError: the tensors don't fit, or what the module returns are no logits of one row each.
    """
    module = built_module(reference, arguments)
    loaded = load_strictly(module, checkpoint, reference)
    module = module.float().eval().requires_grad_(False)
    stored = checkpoint.metadata.get("input_size")
    side = stored if isinstance(stored, int) else DEFAULT_INPUT_SIDE
    unseen: tuple[str, ...] = ()
    if input_size is None and not isinstance(stored, int):
        unseen = (f"nothing says the size of the images that {reference} is for: {side} x {side} is taken",)
    channels = next((child.in_channels for child in module.modules() if isinstance(child, nn.Conv2d)), 3)
    tried, classes, opened = with_bare_logits(module, channels, input_size or (side, side), reference)
    layers = {ours.rpartition(".")[0]: theirs.rpartition(".")[0] for ours, theirs in loaded.names.items()}
    return TrainedNetwork(
        module=tried,
        architecture=f"{type(module).__name__} of {reference}",
        evidence=(
            f"built by {reference}",
            f"all {len(loaded.names)} tensors of the checkpoint loaded strictly, by {loaded.how}",
        ),
        layer_names={f"{opened}{ours}": theirs for ours, theirs in layers.items()},
        classes=classes,
        in_channels=channels,
        default_input_size=side,
        unseen=unseen,
    )
