"""Weights that are computed from other tensors, and what quantisers leave beside weights.

Pruning and weight normalisation store exactly what a weight is computed from, so it is computed here, as torch does.
Everything else that changes a weight, or a layer's input, is only named.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_ORIGINALS = re.compile(r"(.+)\.parametrizations\.(\w+)\.original(\d*)")
_SAVE_AGAIN = "and save its state dict again"

# Tensors beside a layer's weights, or modules of their own, by the last part of a name or by a part within it.
_KINDS = (
    (
        r"\.parametrizations\.\w+\.",
        "a parametrisation of torch.nn.utils.parametrize: the weight is computed from it",
        "take it away from every layer, torch.nn.utils.parametrize.remove_parametrizations(module, 'weight'), "
        f"{_SAVE_AGAIN}",
    ),
    (
        r"\.weight_(u|sigma)$",
        "spectral normalisation: the weight is divided by its largest singular value",
        f"take it away from every layer, torch.nn.utils.remove_spectral_norm(module), {_SAVE_AGAIN}",
    ),
    (
        r"\.weight_(g|v)$",
        "weight normalisation: the weight is computed from its length and its direction",
        f"take it away from every layer, torch.nn.utils.remove_weight_norm(module), {_SAVE_AGAIN}",
    ),
    (
        r"\.(weight|bias)_(orig|mask)$",
        "pruning: the weight is multiplied by a mask",
        f"make it lasting in every layer, torch.nn.utils.prune.remove(module, 'weight'), {_SAVE_AGAIN}",
    ),
    (
        r"\.\w*quan(t|_)\w*(\.|$)|\.(pre_ops|scaling_impl)\.|\._amax$",
        "a quantiser's own number: weights or activations are rounded to its steps",
        "export the float model, as it was before quantisation-aware training",
    ),
)
# Layers of other networks have these names too, so they count only where all else is a ResNet.
_SCALES = (
    r"\.(step_size|clip_val|act_alpha|act_clip\w*|weight_clip\w*|wgt_alpha|w_alpha|a_alpha|alpha|s|lsq_\w+|scale_[aw])$",
    "a clipping bound or a step that was learned (as PACT and LSQ have), or another scale of the layer's own: it "
    "changes what the layer computes",
    "export the float model, as it was before quantisation-aware training",
)
_FACTORY = "or build the network with the altered layers in your own code: --factory package.module:function"
_MAX_SHOWN = 3


def effective_weights(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return `tensors` with the weights computed that pruning and weight normalisation split, and sentences about it.

    A weight is computed only where the tensors determine it exactly: `weight_orig` with a `weight_mask` of its shape,
    or `weight_g` or `original0` with the lengths of `weight_v` or `original1`. All others stay as they are.
    """
    found = dict(tensors)
    masked = [name.removesuffix("_orig") for name in tensors if name.endswith("_orig")]
    pruned = [name for name in masked if _shape(tensors, f"{name}_orig") == _shape(tensors, f"{name}_mask")]
    for name in pruned:
        found[name] = found.pop(f"{name}_mask").to(found[f"{name}_orig"].dtype) * found.pop(f"{name}_orig")
    normalised = {
        name: parts
        for name, parts in _lengths_and_directions(tensors)
        if _dimension(*(tensors[part] for part in parts))
    }
    for name, (length, direction) in normalised.items():
        found[name] = _with_length(found.pop(direction), found.pop(length))
    sentences = []
    if pruned:
        sentences.append(f"{len(pruned)} pruned weights multiplied by their masks, as torch.nn.utils.prune does")
    if normalised:
        sentences.append(f"{len(normalised)} weights computed from their lengths and directions (weight normalisation)")
    # In the order of the layers, as a state dict has them.
    return {name: found[name] for name in dict.fromkeys([*map(_plain_name, tensors), *found]) if name in found}, (
        *sentences,
    )


def alteration_of(tensors: Mapping[str, Tensor], *, is_nearly_ours: bool) -> str | None:
    """Return a message if tensors beside convolutions, BatchNorms or linear layers alter their arithmetic, else None.

    Args:
        is_nearly_ours: whether most tensors are those of a known network, so that a scale among them stands out.
    """
    for pattern, what, cure in (*_KINDS, _SCALES) if is_nearly_ours else _KINDS:
        names = [name for name, tensor in tensors.items() if re.search(pattern, f".{name}") and _is_extra(name, tensor)]
        if names:
            more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
            shapes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in names[:_MAX_SHOWN])
            return f"this network's arithmetic was altered: {shapes}{more} is {what}. To export it, {cure}, {_FACTORY}"
    return None


def _is_extra(name: str, tensor: Tensor) -> bool:
    """Return whether plain layers have no such tensor."""
    last = name.rpartition(".")[2]
    plain = ("weight", "bias", "running_mean", "running_var")
    return last not in plain or "parametrizations" in name or tensor.ndim == 0


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    """Return the shape of the tensor `name`; None if there is none."""
    return tuple(tensors[name].shape) if name in tensors else None


def _plain_name(name: str) -> str:
    """Return the name of the weight that a tensor belongs to."""
    if match := _ORIGINALS.fullmatch(name):
        return f"{match[1]}.{match[2]}"
    return name.removesuffix("_orig").removesuffix("_v")


def _lengths_and_directions(tensors: Mapping[str, Tensor]) -> list[tuple[str, tuple[str, str]]]:
    pairs = [(_plain_name(name), (f"{name[:-1]}g", name)) for name in tensors if name.endswith("_v")]
    for name in tensors:
        match = _ORIGINALS.fullmatch(name)
        # The parametrisation must have no tensors but these two: another would change the weight once more.
        if match and match[3] == "1":
            stem = f"{match[1]}.parametrizations.{match[2]}."
            if {other for other in tensors if other.startswith(stem)} == {f"{stem}original0", f"{stem}original1"}:
                pairs.append((_plain_name(name), (f"{stem}original0", name)))
    return [(name, parts) for name, parts in pairs if parts[0] in tensors and f"{name}_u" not in tensors]


def _dimension(length: Tensor, direction: Tensor) -> tuple[int] | None:
    """Return (dimension,) of `direction` along which `length` differs, (-1,) if it is one number, else None."""
    if direction.ndim < 2 or not direction.is_floating_point():
        return None
    if length.ndim == 0:
        return (-1,)
    sides = [place for place, side in enumerate(length.shape) if side != 1]
    if length.ndim != direction.ndim or len(sides) > 1:
        return None
    place = sides[0] if sides else next((at for at, side in enumerate(direction.shape) if side == 1), None)
    return (place,) if place is not None and length.shape[place] == direction.shape[place] else None


def _with_length(direction: Tensor, length: Tensor) -> Tensor:
    dimension = _dimension(length, direction)
    assert dimension is not None
    with torch.no_grad():
        return torch._weight_norm(direction, length, dimension[0])
