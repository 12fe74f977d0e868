"""Which choices the checkpoint's own file tells, so that nothing has to be assumed of them."""

from collections.abc import Mapping, Set
from typing import Any

from fuseline.export.recognition.choices import CHOICES
from fuseline.export.recognition.naming.naming_schemes import NamingScheme
from fuseline.export.recognition.programs.program_check import Subject

_ALL = frozenset({choice.key for choice in CHOICES} | {"head", "classifier", "widening", "gap", "antialias"})
# What layers without weights a network has is known with its strides, as these are read from the list of its layers.
_KEYS: Mapping[Subject, frozenset[str]] = {
    "strides": frozenset(
        {"stride", "first-stage-stride", "stem-stride", "widening", "head", "classifier", "gap", "antialias"}
    ),
    "eps": frozenset({"eps"}),
    "pools": frozenset({"pool"}),
    "activations": frozenset({"activation"}),
    "shortcuts": frozenset({"shortcut", "projection"}),
}


def told_by_file(scheme: NamingScheme, config: Mapping[str, Any], settled: Set[Subject]) -> frozenset[str]:
    """Keys of what a config.json, whole modules or a program tell; all were held against the network, or taken.

    Args:
        scheme: whose names the tensors have.
        config: transformers' or timm's config.json, if there is one.
        settled: what the file's layers or its program settle.
    """
    if scheme.name.startswith("huggingface") and config.get("model_type") == "resnet":
        return _ALL
    if isinstance(config.get("architecture"), str):
        return _ALL
    return frozenset().union(*(_KEYS[matter] for matter in settled))
