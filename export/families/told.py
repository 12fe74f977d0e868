"""Which choices the checkpoint's own file tells, so that nothing has to be assumed of them."""

from collections.abc import Mapping
from typing import Any

from export.families.choices import CHOICES
from export.families.naming_schemes import NamingScheme

_ALL = frozenset({choice.key for choice in CHOICES} | {"head", "widening", "gap", "antialias"})
# Libraries whose networks' forward is what our networks compute wherever their layers agree.
_KNOWN_CLASSES = ("torchvision.models.", "timm.models.", "transformers.models.")
_OF_LAYERS = frozenset({"stride", "first-stage-stride", "stem-stride", "eps", "widening", "head", "gap"})


def told_by_file(
    scheme: NamingScheme, config: Mapping[str, Any], layer_settings: Mapping[str, Mapping[str, Any]]
) -> frozenset[str]:
    """Keys of what a config.json or whole modules tell; both were held against the network, or taken.

    A module's layers tell strides, eps and which activations and pools are modules; what its forward calls by itself
    they don't, unless the class is one of a library's own.
    """
    if scheme.name.startswith("huggingface") and config.get("model_type") == "resnet":
        return _ALL
    if isinstance(config.get("architecture"), str):
        return _ALL
    if not layer_settings:
        return frozenset()
    kinds = {str(found.get("type", "")) for found in layer_settings.values()}
    if any(str(found.get("class", "")).startswith(_KNOWN_CLASSES) for found in layer_settings.values()):
        return _ALL
    told = set(_OF_LAYERS)
    if "ReLU" in kinds:
        told.add("activation")
    if "MaxPool2d" in kinds:
        told.add("pool")
    return frozenset(told)
