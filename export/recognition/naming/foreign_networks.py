"""Checkpoints that are none of our networks: what they are, by their names, and what their owner can do."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

FACTORY = "build the network with your own code: --factory package.module:function"

_CLASSIFIERS_ONLY = "Fuseline serves image classifiers; export the classifier that its backbone was taken from"


PICTURES_ONLY = "Fuseline serves classifiers of pictures (2-D) only; serve this one as its own code does"

SELF_SUPERVISED = re.compile(
    r"(^|\.)(encoder_[qk]|momentum_encoder|online_encoder|target_encoder|online_network|target_network"
    r"|projection_head|projector|predictor|prototypes)\.|^queue(_ptr)?$"
)
"""Parts of the names of a self-supervised training's tensors."""


@dataclass(frozen=True)
class _Kind:
    names: str
    """A regular expression that is found in the name of one of the network's tensors."""
    what: str
    advice: str


# The first kind that matches counts.
_KINDS = (
    _Kind(
        r"(^|\.)(rpn|roi_heads|box_head|bbox_head|bbox_embed|bbox_predictor|class_embed|anchor_generator)\.",
        "a detection model",
        _CLASSIFIERS_ONLY,
    ),
    _Kind(
        r"(^|\.)(aux_classifier|auxiliary_head|decode_head|decoder|segmentation_head|mask_head)\.|^classifier\.0\.convs\.",
        "a segmentation model",
        _CLASSIFIERS_ONLY,
    ),
    _Kind(
        SELF_SUPERVISED.pattern,
        "a checkpoint of self-supervised training: an encoder with a projection head and no classifier",
        "train a classifier on the encoder and give both: --take PREFIX, what stands before the encoder's names, and "
        "--head-from FILE",
    ),
    _Kind(
        r"_packed_params|\.zero_point$|activation_post_process|fake_quant|weight_scale|qweight|qzeros",
        "a quantised checkpoint",
        "export the float model, as it was before quantisation",
    ),
    _Kind(r"\.conv[12]\.(paths|attn)\.", "a selective-kernel network (SKNet)", FACTORY),
    _Kind(
        r"(^|\.)(cls_token|class_token|pos_embed\w*|position_embeddings?|word_embeddings|relative_position_bias_table)"
        r"|\.(attn|attention|self_attention|mhsa)\.",
        "a transformer, or another network with attention",
        FACTORY,
    ),
    _Kind(r"\.se\.conv\.", "a network with efficient channel attention (ECA)", FACTORY),
    _Kind(r"^layer\d+\.\d+\.conv2\.(bn0|fc1|fc2)\.", "a split-attention network (ResNeSt)", FACTORY),
    _Kind(
        r"^maxpool\.\d", "a network whose stem has a convolution instead of the max-pool (as ResNet-RS has)", FACTORY
    ),
)
_KERNELS_OF_A_NETWORK = 4
_SPATIAL = {3: ("one dimension", "sounds, signals or texts"), 5: ("three dimensions", "volumes or videos")}
_NORM_WEIGHT = re.compile(r"(^|\.)(bn\d?|norm\d?|gn\d?|normalization|downsample\.[12]|shortcut\.1)\.weight$")


def foreign_kind(tensors: Mapping[str, Tensor], classifiers: Iterable[str]) -> str | None:
    """Return a message if `tensors` are clearly something else than a classifying ResNet with BatchNorm, else None.

    Args:
        classifiers: the names that known schemes have for the classifier.
    """
    if found := spatial_dimensions_refusal({name: tuple(tensor.shape) for name, tensor in tensors.items()}):
        return found
    for kind in _KINDS:
        if found := next((name for name in tensors if re.search(kind.names, name)), None):
            return f"this is {kind.what}: it holds {found} {tuple(tensors[found].shape)}; {kind.advice}"
    if found := _dense_classifier(tensors):
        return f"this is a segmentation model: it holds {found} {tuple(tensors[found].shape)}; {_CLASSIFIERS_ONLY}"
    if norm := _norm_without_statistics(tensors):
        return (
            f"this network's normalisation keeps no running statistics: there is {norm}.weight, but no "
            f"{norm}.running_mean. That is GroupNorm, LayerNorm or their like, or a BatchNorm with "
            "track_running_stats=False, or the file has the parameters alone: then save model.state_dict(), which has "
            f"the buffers too. Only a BatchNorm with its statistics folds; to export others as they are, {FACTORY}"
        )
    for classifier in classifiers:
        if len(layers := _layers_of_head(tensors, classifier)) > 1:
            return (
                f"its classifier has several layers with weights ({', '.join(layers)}); one linear layer was expected, "
                f"and which activations stand between them no tensor tells: {FACTORY}; or give another classifier: "
                "--head-from FILE"
            )
    return None


def spatial_dimensions_refusal(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return a message if convolutions run over one or three dimensions and none over two, else None.

    Gates of channels (ECA) have kernels of one dimension too, but beside others of two.

    Args:
        shapes: shapes of all tensors, by name.
    """
    kernels = {name: shape for name, shape in shapes.items() if len(shape) > 2 and name.endswith("weight")}
    if not kernels or any(len(shape) == 4 for shape in kernels.values()):
        return None
    name, shape = next(iter(kernels.items()))
    if len(shape) not in _SPATIAL:
        return None
    dimensions, kind = _SPATIAL[len(shape)]
    return (
        f"this network's convolutions run over {dimensions}, as for {kind}: {name} is {shape}, where one over pictures "
        f"has (out, in, height, width). {PICTURES_ONLY}"
    )


def several_networks(tensors: Mapping[str, Tensor]) -> str | None:
    """Return a message if two or more prefixes have the same names of a network behind them, else None."""
    behind: dict[str, set[str]] = {}
    kernels: Counter[str] = Counter()
    container = _container_of_all(tensors)
    for name, tensor in tensors.items():
        first, _, rest = name.removeprefix(container).partition(".")
        first = container + first
        behind.setdefault(first, set()).add(rest)
        kernels[first] += tensor.ndim == 4
    networks = [first for first, count in kernels.items() if count >= _KERNELS_OF_A_NETWORK]
    twins = [first for first in networks if any(behind[first] == behind[o] for o in networks if o != first)]
    # Stages may have the same names behind them too, but only a network takes pictures.
    twins = [first for first in twins if _has_stem(tensors, first)]
    if len(twins) < 2:
        return None
    return (
        f"the file holds {len(twins)} networks side by side, behind {', '.join(f'{first}.' for first in twins)} and "
        f"nothing says which one is meant: --take {twins[0]} takes the first. If they work together, {FACTORY}"
    )


def _container_of_all(names: Iterable[str]) -> str:
    """Return the prefix, up to a dot, of all names: `models.` of an ensemble's."""
    shared = ""
    for parts in zip(*(name.split(".") for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared += f"{parts[0]}."
    return shared


def _has_stem(tensors: Mapping[str, Tensor], first: str) -> bool:
    """Return whether one kernel behind `first` takes pictures, of 3 channels or of 1.

    Depthwise kernels take 1 channel too, but a network has many of them.
    """
    kernels = [tensor for name, tensor in tensors.items() if name.startswith(f"{first}.") and tensor.ndim == 4]
    taken = Counter(kernel.shape[1] for kernel in kernels if kernel.shape[0] > kernel.shape[1] and kernel.shape[2] > 1)
    return taken[3] == 1 or (not taken[3] and taken[1] == 1)


def _dense_classifier(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of a 3x3 convolution in the classifier behind a ResNet's stages, as torchvision's FCN has it."""
    if not any(re.search(r"(^|\.)layer\d\.", name) for name in tensors):
        return None
    dense = (n for n, t in tensors.items() if re.fullmatch(r"classifier\.\d\.weight", n) and t.shape[2:] == (3, 3))
    return next(dense, None)


def _norm_without_statistics(tensors: Mapping[str, Tensor]) -> str | None:
    if any(name.endswith("running_mean") for name in tensors):
        return None
    norms = (
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if _NORM_WEIGHT.search(name) and tensor.ndim == 1 and f"{name.removesuffix('weight')}bias" in tensors
    )
    return next(norms, None)


def _layers_of_head(tensors: Mapping[str, Tensor], classifier: str) -> list[str]:
    within = re.compile(rf"{re.escape(classifier)}\.\w+(\.\w+)?")
    layers = (n.removesuffix(".weight") for n, tensor in tensors.items() if n.endswith(".weight") and tensor.ndim <= 2)
    return [layer for layer in layers if within.fullmatch(layer)]
