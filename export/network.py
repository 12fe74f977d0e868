"""A trained network, whether it was recognised from its tensors or built by the user's own code."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from fuseline.serve.model_package import Assumption

_ANY_INPUT_SIDE = 224


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """A network with its weights loaded, and what is known of it."""

    module: nn.Module
    """A module in eval mode without gradients. It takes float32 NCHW images, normalised as in training, and gives
    float32 logits (rows, classes)."""
    architecture: str
    """What the network is, for people: `torchvision resnet50`."""
    evidence: tuple[str, ...]
    """Sentences: why the network is taken to be that."""
    layer_names: Mapping[str, str]
    """The module's submodule names to the checkpoint's, for every layer with weights."""
    classes: int
    in_channels: int
    default_input_size: int | None
    """Side in pixels of the pictures that such a network is usually trained on; None where no size is customary."""
    implied_input_size: tuple[int, int] | None = None
    """(height, width) that the network's own code implies, such as by a pool of a fixed size before its classifier."""
    takes_sizes: tuple[tuple[int, int], tuple[int, int]] | None = None
    """The smallest and the largest (height, width) on which `module` computes the same as that code; None: any."""
    assumptions: tuple[Assumption, ...] = ()
    """Settings that change answers and were taken as is customary, or as a flag says."""

    @property
    def usual_input_size(self) -> tuple[int, int]:
        """(height, width) to inspect or try the network on, where nothing says what it was trained on."""
        side = self.default_input_size or _ANY_INPUT_SIDE
        return self.implied_input_size or (self.takes_sizes[1] if self.takes_sizes else (side, side))
