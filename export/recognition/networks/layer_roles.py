"""The roles of layers without weights in a whole module, by their place: an activation, one left out, one too many."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from torch import nn

from fuseline.export.recognition.networks.resnet_spec import PreActResNetSpec, ResNetSpec

Settings = Mapping[str, Mapping[str, Any]]

# (class, our activation, settings that the class must have to be that activation)
_ACTIVATIONS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("ReLU", "relu", {}),
    ("ReLU6", "relu6", {}),
    ("Hardtanh", "relu6", {"min_val": 0, "max_val": 6}),
    ("LeakyReLU", "leaky-relu", {"negative_slope": 0.01}),
    ("LeakyReLU", "leaky-relu-0.1", {"negative_slope": 0.1}),
    ("ELU", "elu", {"alpha": 1}),
    ("CELU", "celu", {"alpha": 1}),
    ("SELU", "selu", {}),
    ("GELU", "gelu", {"approximate": "none"}),
    ("SiLU", "silu", {}),
    ("Mish", "mish", {}),
    ("Hardswish", "hardswish", {}),
    ("Tanh", "tanh", {}),
)
_NAMED_ACTIVATION = re.compile(r"(\w*_)?(relu|act|activation|nonlin\w*|non_linearity)\d*", re.IGNORECASE)
_NOTHING = frozenset({"Identity", "Dropout", "Dropout2d"})
_MAIN_PATH = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "se")
_SOFTMAX = frozenset({"Softmax", "LogSoftmax"})


def kind_of(found: Mapping[str, Any]) -> str:
    """Return the short name of a layer's class."""
    return str(found.get("type", "")).rpartition(".")[2]


def activation_of(found: Mapping[str, Any]) -> str | None:
    """Return our name of the activation that a layer is, by its class and settings; None for other layers."""
    kind = kind_of(found)
    for name, activation, needed in _ACTIVATIONS:
        if kind == name and all(found.get(key) == value for key, value in needed.items()):
            return activation
    return None


def is_final_softmax(found: Mapping[str, Any]) -> bool:
    """Return whether a layer turns logits (rows, classes) into (log-)probabilities, which the server does itself."""
    return kind_of(found) in _SOFTMAX and found.get("dim") in (1, -1)


def misplaced(module: nn.Module, layer_names: Mapping[str, str], settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield (name, what it is, what `module` has there) of layers without weights that can't be part of `module`.

    Args:
        module: the recognised network.
        layer_names: its submodule names to the checkpoint's.
        settings: the settings of the checkpoint's layers, in their order.
    """
    ours = {theirs: name for name, theirs in layer_names.items()}
    spec = getattr(module, "spec", None)
    for name, found in settings.items():
        parent, _, last = name.rpartition(".")
        if kind_of(found) in _NOTHING and _NAMED_ACTIVATION.fullmatch(last) and _computes(parent, settings, ours) > 1:
            yield name, f"is a {kind_of(found)}", "an activation"
        if not isinstance(spec, ResNetSpec) or isinstance(spec, PreActResNetSpec):
            continue
        if activation_of(found) and kind_of(settings.get(parent, {})) == "Sequential":
            yield from _before_a_sum(name, parent, settings, ours)
    yield from _without_activation(settings, ours)
    yield from _too_many(module, settings)


def _computes(parent: str, settings: Settings, ours: Mapping[str, str]) -> int:
    """Return the number of the network's convolutions and linear layers in `parent`."""
    inside = [name for name in ours if name in settings and (not parent or name.startswith(f"{parent}."))]
    return sum("Norm" not in kind_of(settings[name]) for name in inside)


def _before_a_sum(
    name: str, parent: str, settings: Settings, ours: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Yield the activation `name` if its Sequential holds a shortcut alone, or ends with a main path's end.

    Such an activation comes before the shortcut is added, where none of our networks has one.
    """
    order = list(settings)
    inside = [other for other in order if other in ours and other.startswith(f"{parent}.")]
    places = [ours[other].split(".") for other in inside]
    if not places or len({tuple(place[:2]) for place in places}) != 1 or not places[0][0].startswith("layer"):
        return
    parts = {place[2] for place in places}
    block = ".".join(places[0][:2])
    mains = {other.split(".")[2] for other in ours.values() if other.startswith(f"{block}.")} & set(_MAIN_PATH)
    # A Sequential around whole blocks repeats their last activation at most, which changes nothing.
    layers = [other for other in ours if ours[other].startswith(f"{block}.")]
    if parent.count(".") + 1 < _shared_parts(layers):
        return
    is_last = order.index(name) > order.index(inside[-1])
    if parts == {"downsample"}:
        yield name, f"is a {kind_of(settings[name])} in a shortcut", "no such layer"
    elif is_last and "downsample" not in parts and max(mains, key=_MAIN_PATH.index) in parts:
        yield name, f"is a {kind_of(settings[name])} before the shortcut is added", "no such layer"


def _shared_parts(names: Sequence[str]) -> int:
    """Return the number of leading parts that `names`, without their last parts, have in common."""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _without_activation(settings: Settings, ours: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield a layer that does nothing, where a Sequential needs an activation between BatchNorm and convolution."""
    row: list[str] = []
    parent = ""
    for name, found in settings.items():
        above = name.rpartition(".")[0]
        if above != parent or kind_of(settings.get(above, {})) != "Sequential":
            parent, row = above, []
        row.append(name)
        if name not in ours or "Norm" in kind_of(found):
            continue
        between, row = row[:-1], [name]
        idle = [other for other in between if kind_of(settings[other]) in _NOTHING]
        normalised = any(other in ours and "Norm" in kind_of(settings[other]) for other in between[:-1])
        if idle and normalised and not any(activation_of(settings[other]) for other in between):
            yield idle[-1], f"is a {kind_of(settings[idle[-1]])}", "an activation"


def _too_many(module: nn.Module, settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield the last pool of a kind and kernel of which there are more than `module` has."""
    for kind in (nn.MaxPool2d, nn.AvgPool2d):
        pools = [child for child in module.modules() if isinstance(child, kind)]
        kernels = {_pair(pool.kernel_size) for pool in pools}
        alike = [
            name
            for name, found in settings.items()
            if kind_of(found) == kind.__name__ and _pair(found.get("kernel_size")) in kernels
        ]
        if pools and len(alike) > len(pools):
            yield alike[-1], f"is one {kind.__name__} more", f"{len(pools)}"


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else value
