"""The names that published code gives to a ResNet's parts.

A new family of code is a row of `SCHEMES` and a test, unless `fuseline.export.recognition.naming.composed_naming` can
read its names without one. A row also says what no tensor tells about that code: which convolution strides, what a
projection takes.
"""

from dataclasses import dataclass
from typing import Literal

from fuseline.serve.errors import ArchitectureError

Family = Literal["residual", "pre-activation", "plain"]
ProjectionInput = Literal["activated", "raw"]
Limit = Literal[
    "3x3 stem",
    "7x7 stem",
    "biases",
    "bare convolutions",
    "3x3 projections",
    "option A",
    "needless projections",
    "free widths",
]


@dataclass(frozen=True, kw_only=True)
class NamingScheme:
    """The names that one family of code gives to the modules of a ResNet, without `.weight` and the like."""

    name: str
    """The scheme's name, as `--naming` takes it."""
    description: str
    """The code whose names these are, for people."""
    family: Family = "residual"
    """Whether a BatchNorm follows its convolution (He et al. 2015), comes before it (He et al. 2016), or there are no
    shortcuts (plain)."""
    stem: tuple[str, ...] = ("conv1", "bn1")
    """The first convolution and, where it has one, its BatchNorm."""
    deep_stem: tuple[str, ...] = ()
    """Three convolutions, each followed by its BatchNorm where it has one; () if this code has no such stem."""
    block: str = "layer{stage}.{block}"
    """Prefix of a block; blocks are numbered from 0."""
    first_stage: int = 1
    convs: tuple[tuple[str, str], ...] = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
    """A block's convolutions, each with its BatchNorm."""
    shortcut: tuple[str, ...] = ("downsample.0", "downsample.1")
    """A projection's convolution and, where it has one, its BatchNorm."""
    pooled_shortcut: tuple[str, ...] = ()
    """`shortcut` where an average pool comes first; () if this code has none that its names tell."""
    squeeze: tuple[str, ...] = ()
    """The two 1x1 convolutions of squeeze-and-excitation; () if this code has none."""
    final_norm: str | None = None
    """The BatchNorm after the last block (pre-activation); None if there is none."""
    classifier: str = "fc"
    classifier_is_conv: bool = False
    """Whether the classifier's weight is (classes, features, 1, 1)."""
    strided_conv: int | None = None
    """Number, from 1, of the convolution in a block that strides; None: the customary one."""
    projection_input: ProjectionInput = "activated"
    """What a pre-activation block's projection takes: the input before or after the first BatchNorm and ReLU."""
    deep_stem_pools: bool = False
    """Whether average pools come before the projections where there is a deep stem, though no name tells them."""
    lacks: frozenset[Limit] = frozenset()
    """Properties of networks that this code can't build, though it has names for them; such networks aren't converted
    to this scheme."""


_SEQUENTIAL_CONVS = (("0", "1"), ("3", "4"), ("6", "7"))
_SHORTCUT = ("shortcut.0", "shortcut.1")
_ONLY_CUSTOMARY: frozenset[Limit] = frozenset({"biases", "bare convolutions", "3x3 projections"})
_FULL_SIZE: frozenset[Limit] = _ONLY_CUSTOMARY | {"3x3 stem", "option A", "needless projections"}
_HUGGINGFACE_CONVS = tuple((f"layer.{k}.convolution", f"layer.{k}.normalization") for k in range(3))

SCHEMES: tuple[NamingScheme, ...] = (
    NamingScheme(name="torchvision", description="torchvision", lacks=_FULL_SIZE),
    NamingScheme(
        name="timm",
        description="timm's ResNet",
        deep_stem=("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1"),
        pooled_shortcut=("downsample.1", "downsample.2"),
        squeeze=("se.fc1", "se.fc2"),
        lacks=_FULL_SIZE,
    ),
    NamingScheme(
        name="huggingface",
        description="transformers' ResNetForImageClassification",
        stem=("resnet.embedder.embedder.convolution", "resnet.embedder.embedder.normalization"),
        block="resnet.encoder.stages.{stage}.layers.{block}",
        first_stage=0,
        convs=_HUGGINGFACE_CONVS,
        shortcut=("shortcut.convolution", "shortcut.normalization"),
        classifier="classifier.1",
        lacks=_FULL_SIZE | {"free widths"},
    ),
    NamingScheme(
        name="huggingface-backbone",
        description="transformers' ResNetModel",
        stem=("embedder.embedder.convolution", "embedder.embedder.normalization"),
        block="encoder.stages.{stage}.layers.{block}",
        first_stage=0,
        convs=_HUGGINGFACE_CONVS,
        shortcut=("shortcut.convolution", "shortcut.normalization"),
        classifier="classifier.1",
        lacks=_FULL_SIZE | {"free widths"},
    ),
    NamingScheme(
        name="cifar",
        description="the usual CIFAR ResNets (`shortcut` and `linear`)",
        shortcut=_SHORTCUT,
        classifier="linear",
        lacks=_ONLY_CUSTOMARY | {"7x7 stem"},
    ),
    NamingScheme(name="shortcut", description="hand-written ResNets with `shortcut` and `fc`", shortcut=_SHORTCUT),
    NamingScheme(
        name="downsample-linear", description="hand-written ResNets with `downsample` and `linear`", classifier="linear"
    ),
    NamingScheme(
        name="shortcut-stem",
        description="hand-written ResNets with `shortcut` and the stem in a Sequential",
        stem=("conv1.0", "conv1.1"),
        shortcut=_SHORTCUT,
    ),
    NamingScheme(
        name="left-right",
        description="hand-written ResNets with `pre`, `left` and `right`",
        stem=("pre.0", "pre.1"),
        convs=tuple((f"left.{conv}", f"left.{bn}") for conv, bn in _SEQUENTIAL_CONVS),
        shortcut=("right.0", "right.1"),
    ),
    NamingScheme(
        name="conv-sequential",
        description="hand-written ResNets with each convolution in a Sequential",
        stem=("conv1.0", "conv1.1"),
        first_stage=0,
        convs=(("conv1.0", "conv1.1"), ("conv2.0", "conv2.1"), ("conv3.0", "conv3.1")),
    ),
    NamingScheme(
        name="residual-function",
        description="ResNets with `conv2_x` and `residual_function`",
        stem=("conv1.0", "conv1.1"),
        block="conv{stage}_x.{block}",
        first_stage=2,
        convs=tuple((f"residual_function.{conv}", f"residual_function.{bn}") for conv, bn in _SEQUENTIAL_CONVS),
        shortcut=_SHORTCUT,
    ),
    # github.com/kuangliu/pytorch-cifar
    NamingScheme(
        name="preact",
        description="pytorch-cifar's PreActResNet",
        family="pre-activation",
        stem=("conv1",),
        shortcut=("shortcut.0",),
        classifier="linear",
    ),
    # The same names are in use for both: a projection of the activated input (He et al. 2016) and of the raw one.
    NamingScheme(
        name="preact-bn",
        description="PreActResNets with a last BatchNorm `bn`, projecting the activated input",
        family="pre-activation",
        stem=("conv1",),
        shortcut=("shortcut.0",),
        final_norm="bn",
        classifier="linear",
    ),
    NamingScheme(
        name="preact-bn-raw",
        description="PreActResNets with a last BatchNorm `bn`, projecting the raw input",
        family="pre-activation",
        stem=("conv1",),
        shortcut=("shortcut.0",),
        final_norm="bn",
        classifier="linear",
        projection_input="raw",
    ),
    # github.com/bearpaw/pytorch-classification
    NamingScheme(
        name="preresnet",
        description="pytorch-classification's PreResNet",
        family="pre-activation",
        stem=("conv1",),
        shortcut=("downsample.0",),
        final_norm="bn",
        projection_input="raw",
    ),
    # github.com/xternalz/WideResNet-pytorch
    NamingScheme(
        name="wide",
        description="WideResNet-pytorch (`convShortcut`)",
        family="pre-activation",
        stem=("conv1",),
        block="block{stage}.layer.{block}",
        shortcut=("convShortcut",),
        final_norm="bn1",
    ),
    # github.com/meliketoy/wide-resnet.pytorch
    NamingScheme(
        name="wide-shortcut",
        description="wide-resnet.pytorch (`shortcut` and `linear`)",
        family="pre-activation",
        stem=("conv1",),
        shortcut=("shortcut.0",),
        final_norm="bn1",
        classifier="linear",
        projection_input="raw",
        strided_conv=2,
    ),
    NamingScheme(
        name="timm-v2",
        description="timm's ResNetV2",
        family="pre-activation",
        stem=("stem.conv",),
        deep_stem=("stem.conv1", "stem.norm1", "stem.conv2", "stem.norm2", "stem.conv3"),
        block="stages.{stage}.blocks.{block}",
        first_stage=0,
        convs=(("conv1", "norm1"), ("conv2", "norm2"), ("conv3", "norm3")),
        shortcut=("downsample.conv",),
        final_norm="norm",
        classifier="head.fc",
        classifier_is_conv=True,
        deep_stem_pools=True,
        lacks=_ONLY_CUSTOMARY | {"3x3 stem"},
    ),
    NamingScheme(name="plain", description="the plain network (`features` and `fc`)", family="plain"),
)


COMPOSED = ("composed", "composed-preact", "composed-preact-raw")
"""Values of `--naming` for other names, read by what repeats in them: residual, pre-activation, and pre-activation with
projections of the raw input. See `fuseline.export.recognition.naming.composed_naming`."""


def scheme_named(name: str) -> NamingScheme:
    """Return the row of `SCHEMES` called `name`.

    Raises:
        ArchitectureError: there is no such row; the message lists all.
    """
    for scheme in SCHEMES:
        if scheme.name == name:
            return scheme
    known = "; ".join(f"{scheme.name} ({scheme.description})" for scheme in SCHEMES)
    raise ArchitectureError(
        f"there is no naming {name!r}; --naming takes one of: {known}. It also takes {', '.join(COMPOSED)}, which "
        "read other names by what repeats in them; nothing is written under those"
    )
