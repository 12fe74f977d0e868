"""The choices that the checkpoint's own file settles, so that nothing about them has to be assumed."""

from collections.abc import Mapping, Set
from typing import Any

from fuseline.export.recognition.choices import CHOICES
from fuseline.export.recognition.naming.naming_schemes import NamingScheme
from fuseline.export.recognition.programs.program_check import Subject

_ALL = frozenset({choice.key for choice in CHOICES} | {"head", "classifier", "widening", "gap", "antialias"})
# Where the strides are known, so are the layers without weights, as both are read from the list of layers.
_KEYS: Mapping[Subject, frozenset[str]] = {
    "strides": frozenset(
        {"stride", "first-stage-stride", "stem-stride", "widening", "head", "classifier", "gap", "antialias"}
    ),
    "eps": frozenset({"eps"}),
    "pools": frozenset({"pool"}),
    "activations": frozenset({"activation"}),
    "shortcuts": frozenset({"shortcut", "projection"}),
}


def settled_keys(scheme: NamingScheme, config: Mapping[str, Any], settled: Set[Subject]) -> frozenset[str]:
    """Return the keys of the choices that a config.json, whole modules or a program settle.

    All that these say was checked against the network before, or taken over into it.

    Args:
        scheme: the scheme of the tensors' names.
        config: transformers' or timm's config.json; empty if there is none.
        settled: what the file's layers or its program settle.
    """
    if scheme.name.startswith("huggingface") and config.get("model_type") == "resnet":
        return _ALL
    if isinstance(config.get("architecture"), str):
        return _ALL
    return frozenset().union(*(_KEYS[subject] for subject in settled))
