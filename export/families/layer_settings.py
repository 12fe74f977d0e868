"""What a checkpoint of whole modules tells of its layers, strides above all, held against the recognised network."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from export.families.foreign_networks import FACTORY
from serve.errors import ArchitectureError

_OF_CONVOLUTIONS = ("kernel_size", "stride", "padding", "dilation", "groups")
_OF_POOLS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
# Classes that compute the same at inference; a 1x1 convolution of pooled features is a linear layer.
_STAND_INS = {
    "BatchNorm2d": {"BatchNorm2d", "BatchNormAct2d", "SyncBatchNorm"},
    "Linear": {"Linear", "Conv2d"},
}
# What would compute something else wherever it stands; Sigmoid is not among them, squeeze-and-excitation has it.
_FOREIGN = frozenset(
    {"LeakyReLU", "PReLU", "RReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Hardswish", "Hardtanh", "ReLU6"}
    | {"Tanh", "BlurPool2d"}
)


def apply_layer_settings(
    module: nn.Module, layer_names: Mapping[str, str], settings: Mapping[str, Mapping[str, Any]]
) -> tuple[str, ...]:
    """Take each BatchNorm's eps from `settings`, and hold the rest against `module`.

    Args:
        module: the recognised network.
        layer_names: its submodule names to the checkpoint's.
        settings: the checkpoint's layer names to what each was made with, `type` among it.

    Returns:
        Sentences about what was taken.

    Raises:
        ArchitectureError: a layer is of another type, strides, pads, dilates or is grouped otherwise; or the checkpoint
            has a pool or an activation that the recognised network hasn't.
    """
    epsilons: set[float] = set()
    for ours, theirs in layer_names.items():
        found = settings.get(theirs)
        if found is None:
            continue
        layer = module.get_submodule(ours)
        kind, expected = _kind(found), type(layer).__name__
        if kind and kind not in _STAND_INS.get(expected, {expected}):
            raise _contradiction(theirs, f"is a {kind}", f"a {expected}")
        if isinstance(layer, nn.Conv2d):
            _check_settings(theirs, layer, found, _OF_CONVOLUTIONS)
        elif isinstance(layer, nn.BatchNorm2d) and isinstance(eps := found.get("eps"), float) and eps != layer.eps:
            layer.eps = eps
            epsilons.add(eps)
    for name in settings.keys() - layer_names.values():
        _check_layer_without_weights(name, settings[name], module)
    return tuple(f"BatchNorm's eps of {eps:g} taken from the checkpoint's own layers" for eps in sorted(epsilons))


def _check_layer_without_weights(name: str, found: Mapping[str, Any], module: nn.Module) -> None:
    kind = _kind(found)
    is_anti_aliasing = name.endswith(".aa") and kind != "Identity"
    if kind in _FOREIGN or is_anti_aliasing:
        raise _contradiction(name, f"is a {kind}", "no such layer")
    if kind == "MaxPool2d":
        pool = next((child for child in module.modules() if isinstance(child, nn.MaxPool2d)), None)
        if pool is None:
            raise _contradiction(name, f"is a {kind}", "no such layer")
        _check_settings(name, pool, found, _OF_POOLS)


def _check_settings(name: str, layer: nn.Module, found: Mapping[str, Any], settings: tuple[str, ...]) -> None:
    for setting in settings:
        ours = _as_pair(getattr(layer, setting))
        if setting in found and _as_pair(found[setting]) != ours:
            shown = ours[0] if isinstance(ours, tuple) and len(set(ours)) == 1 else ours
            raise _contradiction(name, f"has {setting} {found[setting]}", f"{setting} {shown}")


def _contradiction(name: str, found: str, expected: str) -> ArchitectureError:
    return ArchitectureError(
        f"by its tensors this is a known ResNet, but the checkpoint's own layer {name} {found} where that network has "
        f"{expected}; it would compute something else. To export it, {FACTORY}"
    )


def _kind(found: Mapping[str, Any]) -> str:
    return str(found.get("type", "")).rpartition(".")[2]


def _as_pair(value: Any) -> Any:
    """(h, w) of what may be a number for both; anything else, as `same`, is left alone."""
    if isinstance(value, int):
        return (value, value)
    return tuple(value) if isinstance(value, list | tuple) else value
