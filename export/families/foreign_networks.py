"""What a checkpoint is that is none of our networks, told from its names, and what its owner can do."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

FACTORY = "build the network with your own code: --factory package.module:function"

_CLASSIFIERS_ONLY = "Fuseline serves image classifiers; export the classifier that its backbone was taken from"


@dataclass(frozen=True)
class _Kind:
    names: str
    """A regular expression that one of its tensors' names matches."""
    what: str
    advice: str


# The first that matches speaks.
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
        r"(^|\.)(encoder_[qk]|momentum_encoder|online_encoder|target_encoder|online_network|target_network"
        r"|projection_head|projector|predictor|prototypes)\.|^queue(_ptr)?$",
        "a checkpoint of self-supervised training: an encoder with a projection head and no classifier",
        "keep the encoder's tensors alone, without their prefix, train a classifier on it, and give that with "
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
_NORM_WEIGHT = re.compile(r"(^|\.)(bn\d?|norm\d?|gn\d?|normalization|downsample\.[12]|shortcut\.1)\.weight$")


def foreign_kind(tensors: Mapping[str, Tensor], classifiers: Iterable[str]) -> str | None:
    """A message if these are clearly something else than a classifying ResNet with BatchNorm, else None.

    `classifiers` are the names that known schemes give to the classifier.
    """
    if found := _other_dimensions(tensors):
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
                f"and which activations stand between them no tensor tells: {FACTORY}"
            )
    return None


def _other_dimensions(tensors: Mapping[str, Tensor]) -> str | None:
    """A message on convolutions of signals, or of videos and volumes."""
    kernels = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] == "weight"}
    volumes = next((name for name, tensor in kernels.items() if tensor.ndim == 5), None)
    signals = next((name for name, tensor in kernels.items() if tensor.ndim == 3), None)
    if volumes is None and (signals is None or any(tensor.ndim == 4 for tensor in kernels.values())):
        return None
    found, what = (volumes, "3-D, of videos or volumes") if volumes else (signals, "1-D, of signals")
    return (
        f"this network's convolutions are {what}: it holds {found} {tuple(kernels[str(found)].shape)}. Fuseline serves "
        "classifiers of 2-D pictures, whose convolutions have weights (out, in, height, width); no flag changes that"
    )


def _dense_classifier(tensors: Mapping[str, Tensor]) -> str | None:
    """A classifier of 3x3 convolutions behind a ResNet's stages, as torchvision's FCN has it."""
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
