"""Comparison of the settings of a checkpoint's whole modules, strides above all, with the recognised network."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from fuseline.export.recognition.naming.foreign_networks import FACTORY
from fuseline.export.recognition.networks.layer_roles import activation_of, is_final_softmax, misplaced
from fuseline.export.recognition.programs.pool_sizes import InputSizes
from fuseline.export.recognition.programs.program_check import EVERYTHING, FileFacts, Subject, input_sizes_of_pool
from fuseline.serve.errors import ArchitectureError

_Layer = TypeVar("_Layer", bound=nn.Module)
_OF_CONVOLUTIONS = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_OF_POOLS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
# Classes that compute the same at inference; a 1x1 convolution of pooled features is a linear layer.
_STAND_INS = {
    "BatchNorm2d": {"BatchNorm2d", "BatchNormAct2d", "SyncBatchNorm", "FrozenBatchNorm2d"},
    "Linear": {"Linear", "Conv2d"},
}
# Layers without weights that do nothing at inference, or what each of our networks does in their place.
_HARMLESS = frozenset(
    {"Identity", "Flatten", "DropPath", "StochasticDepth", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d"}
    | {"AlphaDropout", "FeatureAlphaDropout", "DropBlock2d", "Sequential", "ModuleList", "ModuleDict"}
)
_GLOBAL_POOLS = frozenset({"AdaptiveAvgPool2d", "FastAdaptiveAvgPool2d", "SelectAdaptivePool2d"})
_LEAST_GLOBAL_KERNEL = 4
_KNOWN_CLASSES = ("torchvision.models.", "timm.models.", "transformers.models.", "torch.nn.", "torch._dynamo.")
# The forward of such a class is generated code, which may leave out any of the layers.
_REWRITTEN = "torch.fx."
_BYSTANDER = re.compile(r"(\w*_)?(criterion|loss\w*|metrics?|acc\w*)\d*|(train|val|valid|test)_\w+", re.IGNORECASE)


def apply_layer_settings(
    module: nn.Module, layer_names: Mapping[str, str], settings: Mapping[str, Mapping[str, Any]]
) -> FileFacts:
    """Take each BatchNorm's eps from `settings`, and compare the rest with `module`.

    Args:
        module: the recognised network.
        layer_names: its submodule names to the checkpoint's.
        settings: the checkpoint's layer names to each layer's settings, with its `type`; `hooks` and `buffers` name
            what a state dict leaves out. `""` is the network with its wrappers, whose full names are its `classes`.

    Raises:
        ArchitectureError: a layer has another type, stride, padding, dilation or number of groups; or the checkpoint
            has a layer, a forward hook or an unsaved buffer that the recognised network hasn't, or lacks its pool.
    """
    epsilons: set[float] = set()
    for layer_name, name in layer_names.items():
        found = settings.get(name)
        if found is None:
            continue
        layer = module.get_submodule(layer_name)
        kind, expected = _kind(found), type(layer).__name__
        # A frozen BatchNorm without an eps attribute has one in its code, or none.
        knows_eps = kind != "FrozenBatchNorm2d" or isinstance(found.get("eps"), float)
        if kind and (kind not in _STAND_INS.get(expected, {expected}) or not knows_eps):
            raise _contradiction(name, f"is a {kind}", f"a {expected}")
        if isinstance(layer, nn.Conv2d):
            _check_settings(name, layer, found, _OF_CONVOLUTIONS)
        elif isinstance(layer, nn.BatchNorm2d) and isinstance(eps := found.get("eps"), float) and eps != layer.eps:
            layer.eps = eps
            epsilons.add(eps)
    for name, found in settings.items():
        _check_additions(name, found)
        if name and name not in layer_names.values():
            _check_layer_without_weights(name, settings, layer_names.get("fc", ""), module)
    for place, came, expected in misplaced(module, layer_names, settings):
        raise _contradiction(place, came, expected)
    is_whole = set(layer_names.values()) <= settings.keys()
    if (
        is_whole
        and _first(module, nn.MaxPool2d)
        and not any(_kind(found) == "MaxPool2d" for found in settings.values())
    ):
        raise _contradiction("list", "has no MaxPool2d", "one")
    taken = [f"BatchNorm's eps of {eps:g} taken from the checkpoint's own layers" for eps in sorted(epsilons)]
    taken += [
        f"the forward of the checkpoint's class {owner} was not read; it is taken to be that of its layers"
        for owner in settings.get("", {}).get("classes", ())
        if not owner.startswith(_KNOWN_CLASSES)
    ]
    settled = _settled(module, settings) if is_whole else frozenset()
    return FileFacts(tuple(taken), _input_sizes(module, layer_names, settings), settled)


def _settled(module: nn.Module, settings: Mapping[str, Mapping[str, Any]]) -> frozenset[Subject]:
    """Return what the layers settle. A forward that isn't known may call pools and activations that aren't layers."""
    classes = [
        *settings.get("", {}).get("classes", ()),
        *(found["class"] for found in settings.values() if "class" in found),
    ]
    if classes and all(owner.startswith(_KNOWN_CLASSES) for owner in classes):
        return EVERYTHING
    kinds = {_kind(found) for found in settings.values()}
    settled: set[Subject] = {"strides", "eps"}
    if any(owner.startswith(_REWRITTEN) for owner in classes):
        return frozenset(settled)
    if any(map(activation_of, settings.values())):
        settled.add("activations")
    if "MaxPool2d" in kinds and _first(module, nn.MaxPool2d):
        settled.add("pools")
    return frozenset(settled)


def _input_sizes(
    module: nn.Module, layer_names: Mapping[str, str], settings: Mapping[str, Mapping[str, Any]]
) -> InputSizes | None:
    """Return the input sizes that the pool before the classifier is made for, if there is one of a fixed size."""
    pools = [found for found in settings.values() if _is_global_kernel(found)]
    kernels = {_as_pair(found["kernel_size"]) for found in pools}
    if len(kernels) != 1 or any(_kind(found) in _GLOBAL_POOLS for found in settings.values()):
        return None
    ceil_mode = any(found.get("ceil_mode") for found in pools)
    return input_sizes_of_pool(module, layer_names, kernels.pop(), ceil_mode=ceil_mode)


def _check_additions(name: str, found: Mapping[str, Any]) -> None:
    kinds = {"hooks": "forward hooks", "buffers": "buffers that its state dict leaves out:", "methods": "its own"}
    for key, what in kinds.items():
        if found.get(key):
            raise _contradiction(name or "at the top", f"has {what} {', '.join(map(str, found[key]))}", "none")


def _check_layer_without_weights(
    name: str, settings: Mapping[str, Mapping[str, Any]], classifier: str, module: nn.Module
) -> None:
    found = settings[name]
    kind = _kind(found)
    if any(other.startswith(f"{name}.") for other in settings):
        return  # its layers are checked one by one
    parent = name.rpartition(".")[0]
    if kind in _HARMLESS or kind.endswith("Loss") or _BYSTANDER.fullmatch(name.partition(".")[0]):
        return
    order = list(settings)
    is_behind = classifier in settings and order.index(name) > order.index(classifier)
    if is_behind and is_final_softmax(found):
        return
    if is_behind and parent == classifier.rpartition(".")[0] and _kind(settings.get(parent, {})) == "Sequential":
        raise _contradiction(name, f"is a {kind} behind the classifier", "no such layer")
    if kind == "MaxPool2d" and (pool := _first(module, nn.MaxPool2d)):
        _check_settings(name, pool, found, _OF_POOLS)
    elif not (
        _is_activation_of(name, found, module) or _is_pool_of(name, found, module) or _is_part_of(name, kind, module)
    ):
        raise _contradiction(name, f"is a {kind}", "no such layer")


def _is_activation_of(name: str, found: Mapping[str, Any], module: nn.Module) -> bool:
    """Return whether it is an activation of `module`: between layers, or in the gate of squeeze-and-excitation."""
    spec = getattr(module, "spec", None)
    if _kind(found) == "ReLU" and getattr(spec, "squeeze_widths", None) and name.count(".") > 2:
        return True
    known = {getattr(spec, "activation", "relu"), getattr(spec, "inner_activation", "relu")}
    return activation_of(found) in known


def _is_pool_of(name: str, found: Mapping[str, Any], module: nn.Module) -> bool:
    """Return whether it is a global average pool, one of a fixed size in its place, or a pool of a shortcut."""
    kind = _kind(found)
    if kind in _GLOBAL_POOLS:
        return bool(_as_pair(found.get("output_size", 1)) == (1, 1))
    if kind != "AvgPool2d" or name.endswith(".aa"):
        return False
    kernel = _as_pair(found.get("kernel_size"))
    if (ours := _first(module, nn.AvgPool2d)) and kernel == _as_pair(ours.kernel_size):
        return _as_pair(found.get("stride")) in (_as_pair(ours.stride), (1, 1))
    return _is_global_kernel(found)


def _is_global_kernel(found: Mapping[str, Any]) -> bool:
    """Return whether it is an average pool so large that it can only be the one before the classifier."""
    kernel = _as_pair(found.get("kernel_size")) if _kind(found) == "AvgPool2d" else None
    if not isinstance(kernel, tuple) or not all(type(side) is int for side in kernel) or len(kernel) != 2:
        return False
    return min(kernel) >= _LEAST_GLOBAL_KERNEL and not any(_as_pair(found.get("padding", 0)))


def _is_part_of(name: str, kind: str, module: nn.Module) -> bool:
    """Return whether `module` has it without a layer: squeeze-and-excitation's gate, or a shortcut without weights."""
    spec = getattr(module, "spec", None)
    last = name.rpartition(".")[2]
    if kind == "Sigmoid":
        return bool(getattr(spec, "squeeze_widths", None)) and name.count(".") > 1
    return getattr(spec, "shortcut", "") == "option-a" and last in ("shortcut", "downsample")


def _first(module: nn.Module, kind: type[_Layer]) -> _Layer | None:
    return next((child for child in module.modules() if isinstance(child, kind)), None)


def _check_settings(name: str, layer: nn.Module, found: Mapping[str, Any], settings: tuple[str, ...]) -> None:
    for setting in settings:
        ours = _as_pair(getattr(layer, setting))
        is_text = isinstance(layer, nn.Conv2d) and found.get(setting) in ("same", "valid")
        if setting == "padding" and is_text and found[setting] == _padding_by_name(layer):
            continue
        if setting in found and _as_pair(found[setting]) != ours:
            shown = ours[0] if isinstance(ours, tuple) and len(set(ours)) == 1 else ours
            raise _contradiction(name, f"has {setting} {found[setting]}", f"{setting} {shown}")


def _padding_by_name(layer: Any) -> str | None:
    """Return torch's name for a convolution's padding: `same` (of stride 1 alone), `valid`, or None if it has none."""
    if not any(layer.padding):
        return "valid"
    padding = [pad for pad in layer.padding if isinstance(pad, int)]
    sides = zip(padding, layer.kernel_size, layer.dilation, strict=True)
    is_same = all(2 * pad == apart * (side - 1) for pad, side, apart in sides)
    return "same" if is_same and layer.stride == (1, 1) else None


def _contradiction(name: str, found: str, expected: str) -> ArchitectureError:
    return ArchitectureError(
        f"by its tensors this is a known ResNet, but the checkpoint's own layer {name} {found} where that network has "
        f"{expected}; it would compute something else. To export it, {FACTORY}"
    )


def _kind(found: Mapping[str, Any]) -> str:
    return str(found.get("type", "")).rpartition(".")[2]


def _as_pair(value: Any) -> Any:
    """Return (h, w) of a value that may be one number for both; any other value, such as `same`, stays as it is."""
    if isinstance(value, int):
        return (value, value)
    return tuple(value) if isinstance(value, list | tuple) else value
