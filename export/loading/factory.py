"""The user's own network: built by their function, loaded strictly from the checkpoint, and tried before it is trusted.

It serves networks that can't be told from their tensors. The user names the function, so its code is run; code in a
checkpoint never is.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from fuseline.export.checkpoint.checkpoint import Checkpoint
from fuseline.export.loading.strict_loading import load_strictly
from fuseline.export.loading.users_code import built_module
from fuseline.export.network import TrainedNetwork
from fuseline.export.recognition.modules.logits_trial import with_bare_logits
from fuseline.export.recognition.modules.module_input_size import input_size_of
from fuseline.export.recognition.naming.foreign_networks import spatial_dimensions_refusal
from fuseline.serve.errors import ArchitectureError


def network_from_factory(
    reference: str,
    arguments: Mapping[str, Any],
    checkpoint: Checkpoint,
    input_size: tuple[int, int] | None = None,
    shared_size: tuple[int, int] | None = None,
) -> TrainedNetwork:
    """Return the network that `reference` (`package.module:function`) builds, with the weights of `checkpoint`.

    The module takes normalised float32 NCHW images and returns logits (rows, classes), or an object or mapping with
    `logits`. Modules in the current folder are found.

    Args:
        reference: the function or class; called with `arguments` by keyword.
        arguments: plain values.
        checkpoint: the checkpoint, whose tensors must be the module's, by name and shape, all of them.
        input_size: (height, width) in pixels that a flag names; None: the checkpoint's, else what the module or
            `shared_size` tells.
        shared_size: (height, width) in pixels that all of the user's images have; None: they differ, or there are none.

    Raises:
        InputError: `reference` names nothing that can be called, its code raises, it returns no `nn.Module`, or nothing
            tells the size of its images.
        ArchitectureError: the tensors don't fit, the module doesn't return one row of logits for each image, or it is
            for sounds or volumes instead of images.
    """
    module = built_module(reference, arguments)
    if wrong := spatial_dimensions_refusal(_kernels(module)):
        raise ArchitectureError(wrong)
    loaded = load_strictly(module, checkpoint, reference)
    module = module.float().eval().requires_grad_(False)
    stored = checkpoint.metadata.get("input_size")
    if input_size is None and isinstance(stored, int):
        input_size = (stored, stored)
    found = input_size_of(module, reference, chosen=input_size, shared=shared_size)
    tried, classes, opened = with_bare_logits(module, found.channels, found.size, reference)
    layers = {name.rpartition(".")[0]: stored.rpartition(".")[0] for name, stored in loaded.names.items()}
    height, width = found.size
    return TrainedNetwork(
        module=tried,
        architecture=f"{type(module).__name__} of {reference}",
        evidence=(
            f"built by {reference}",
            f"all {len(loaded.names)} tensors of the checkpoint loaded strictly, by {loaded.how}",
            *found.evidence,
        ),
        layer_names={f"{opened}{name}": stored for name, stored in layers.items()},
        classes=classes,
        in_channels=found.channels,
        default_input_size=height if height == width else None,
        implied_input_size=found.implied,
        assumptions=found.assumptions,
    )


def _kernels(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the weights' shapes of modules that are convolutions, as a weight of another module may be anything."""
    return {
        f"{name}.weight": tuple(child.weight.shape)
        for name, child in module.named_modules()
        if isinstance(child, nn.Conv1d | nn.Conv2d | nn.Conv3d) and not is_lazy(child.weight)
    }
