"""The names that code in the wild gives to the parts of a ResNet. A new family is a row of `SCHEMES` and a test."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NamingScheme:
    """How one family of code names the parts of a ResNet: modules, without `.weight` and the like."""

    name: str
    stem: tuple[str, str] = ("conv1", "bn1")
    """First convolution and its BatchNorm."""
    block: str = "layer{stage}.{block}"
    """Prefix of a block; blocks are numbered from 0."""
    first_stage: int = 1
    convs: tuple[tuple[str, str], ...] = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
    """A block's convolutions, each with its BatchNorm."""
    shortcut: tuple[str, str] = ("downsample.0", "downsample.1")
    classifier: str = "fc"


_SEQUENTIAL_CONVS = (("0", "1"), ("3", "4"), ("6", "7"))

SCHEMES = (
    NamingScheme("torchvision"),
    NamingScheme("CIFAR", shortcut=("shortcut.0", "shortcut.1"), classifier="linear"),
    NamingScheme("shortcut", shortcut=("shortcut.0", "shortcut.1")),
    NamingScheme("shortcut, stem in a Sequential", stem=("conv1.0", "conv1.1"), shortcut=("shortcut.0", "shortcut.1")),
    NamingScheme(
        "left and right",
        stem=("pre.0", "pre.1"),
        convs=tuple((f"left.{conv}", f"left.{bn}") for conv, bn in _SEQUENTIAL_CONVS),
        shortcut=("right.0", "right.1"),
    ),
    NamingScheme(
        "each convolution in a Sequential",
        stem=("conv1.0", "conv1.1"),
        first_stage=0,
        convs=(("conv1.0", "conv1.1"), ("conv2.0", "conv2.1"), ("conv3.0", "conv3.1")),
    ),
    NamingScheme(
        "residual_function",
        stem=("conv1.0", "conv1.1"),
        block="conv{stage}_x.{block}",
        first_stage=2,
        convs=tuple((f"residual_function.{conv}", f"residual_function.{bn}") for conv, bn in _SEQUENTIAL_CONVS),
        shortcut=("shortcut.0", "shortcut.1"),
    ),
)
