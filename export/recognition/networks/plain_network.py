"""The plain network: a ResNet without its shortcuts (He et al. 2015, section 4.1, "plain"), in one nn.Sequential.

`features` is convolution, BatchNorm and ReLU over and over, then global average pooling and `fc`. It strides by 2
exactly where its width doubles. A 7x7 first convolution strides too, and a max-pool may follow it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from fuseline.export.recognition.networks.resnet import activation_layer
from fuseline.export.recognition.networks.resnet_spec import Activation
from fuseline.serve.errors import ArchitectureError

_LAYER = re.compile(r"features\.(\d+)\.(weight|bias|running_mean|running_var)$")


@dataclass(frozen=True)
class PlainSpec:
    """All that `PlainNetwork` needs to build a network."""

    kernel: int
    """Side of the first convolution's kernel; the others are 3x3."""
    maxpool: bool
    """Whether a max-pool follows the first convolution."""
    widths: tuple[int, ...]
    """Number of output channels of each convolution."""
    classes: int
    in_channels: int = 3
    biased: bool = False
    """Whether the convolutions have biases."""
    eps: float = 1e-5
    """The eps of every BatchNorm."""
    activation: Activation = "relu"

    @property
    def default_input_size(self) -> int:
        """Side in pixels of the pictures that such a network is usually trained on."""
        return 32 if self.kernel == 3 else 224

    @property
    def depth(self) -> int:
        """Number of layers with weights."""
        return len(self.widths) + 1


class PlainNetwork(nn.Module):
    """The network of `spec`: float32 NCHW, already normalised, in; logits (rows, classes), float32, out."""

    def __init__(self, spec: PlainSpec) -> None:
        super().__init__()
        self.spec = spec
        layers: list[nn.Module] = []
        width = spec.in_channels
        for index, out in enumerate(spec.widths):
            kernel = spec.kernel if index == 0 else 3
            stride = 2 if (index > 0 and out == 2 * width) or (index == 0 and kernel == 7) else 1
            layers += [
                nn.Conv2d(width, out, kernel, stride, kernel // 2, bias=spec.biased),
                nn.BatchNorm2d(out, spec.eps),
                activation_layer(spec.activation),
            ]
            if index == 0 and spec.maxpool:
                layers.append(nn.MaxPool2d(3, 2, 1))
            width = out
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(width, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (rows, classes) of `images` (rows, channels, height, width)."""
        logits: Tensor = self.fc(self.features(images).mean((2, 3)))
        return logits


def infer_plain_spec(shapes: Mapping[str, tuple[int, ...]]) -> PlainSpec:
    """Return the spec that `shapes` (our tensor names to shapes) tell; strict loading proves later that they fit.

    Raises:
        ArchitectureError: the indices have gaps that nothing known fills, or a width changes but doesn't double.
    """
    indices = sorted({int(match[1]) for name in shapes if (match := _LAYER.match(name))})
    weights = {index: shapes.get(f"features.{index}.weight", ()) for index in indices}
    convs = [index for index, shape in weights.items() if len(shape) == 4 and all(shape)]
    if not convs or not all(shapes.get("fc.weight") or (0,)):
        raise ArchitectureError("a plain network has convolutions in `features` and a classifier `fc`")
    kernel = shapes[f"features.{convs[0]}.weight"][2]
    maxpool = kernel == 7 and len(convs) > 1 and convs[1] == 4
    expected = [3 * number + (1 if maxpool and number else 0) for number in range(len(convs))]
    if indices != sorted(index for conv in expected for index in (conv, conv + 1)):
        places = [index for conv in expected for index in (conv, conv + 1)]
        raise ArchitectureError(
            f"these names are a plain network's, but its layers with weights lie at features.{_some(indices)}; "
            f"expected convolution, BatchNorm and ReLU over and over, so {_some(places)} (one later on after a max-"
            "pool behind a 7x7 first convolution). What fills the gaps no tensor tells: build the network with "
            "your own code, --factory package.module:function"
        )
    widths = tuple(shapes[f"features.{conv}.weight"][0] for conv in convs)
    if odd := [(a, b) for a, b in pairwise(widths) if b not in {a, 2 * a}]:
        raise ArchitectureError(
            f"this plain network goes from {odd[0][0]} to {odd[0][1]} channels; where the width doubles it is taken to "
            "stride by 2, but here no tensor tells. Build it with your own code: --factory package.module:function"
        )
    return PlainSpec(
        kernel=7 if kernel == 7 else 3,
        maxpool=maxpool,
        widths=widths,
        classes=shapes["fc.weight"][0],
        in_channels=shapes[f"features.{convs[0]}.weight"][1],
        biased=f"features.{convs[0]}.bias" in shapes,
    )


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
