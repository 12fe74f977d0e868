"""What timm's config.json beside the tensors says about a network that no tensor tells."""

import json
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from fuseline.export.recognition.naming.foreign_networks import FACTORY
from fuseline.export.recognition.networks.resnet_spec import PreActResNetSpec, ResNetSpec
from fuseline.export.recognition.recognised import Spec

_ANTI_ALIASED = re.compile(r"resne(t|xt)(aa|blur)\d")
# The tensors of ResNetV2 have the same names with and without average pools in its shortcuts; the model's name tells.
_V2 = re.compile(r"resnetv2_\d+")
_V2_THAT_AVERAGES = re.compile(r"resnetv2_\d+[dt](_|$)")
_AVERAGES = ("avg", "fast", "fastavg")
# Arguments of timm.models.resnet.ResNet and timm.models.resnetv2.ResNetV2; any other may do anything.
_NOTHING_AT_INFERENCE = frozenset({"drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last"})
_NOTHING_AT_INFERENCE |= {"device", "dtype"}
# Of timm.create_model itself.
_NOTHING_AT_INFERENCE |= {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
_NOTHING_AT_INFERENCE |= {"scriptable", "exportable", "no_jit"}
_TOLD_BY_SHAPES = frozenset(
    {"num_classes", "in_chans", "layers", "channels", "cardinality", "base_width", "stem_width"}
)
_TOLD_BY_SHAPES |= {"stem_chs", "width_factor", "bottle_ratio", "basic", "block_reduce_first", "down_kernel_size"}
_DEFAULTS: dict[str, Callable[[Any], bool]] = {
    "output_stride": lambda value: value == 32,
    "global_pool": lambda value: value in _AVERAGES,
    "act_layer": lambda value: str(value).lower() == "relu",
    "norm_layer": lambda value: str(value).replace("_", "").lower() in ("batchnorm", "batchnorm2d"),
    "aa_layer": lambda value: not value,
    "block_args": lambda value: not value,
    "replace_stem_pool": lambda value: value is False,
    "preact": lambda value: value is True,
}
"""Argument -> whether a value is what the recognised networks have."""


def foreign_architecture(config: Mapping[str, Any], spec: Spec | None) -> str | None:
    """Return a message if timm's config.json contradicts the networks that are recognised, else None.

    An argument is harmless if it does nothing at inference, if shapes tell it, if its value is what recognised networks
    have, or if `spec` confirms it.

    Args:
        config: timm's config.json, decoded.
        spec: what was recognised; None: nothing was.
    """
    name = config.get("architecture")
    if not isinstance(name, str):
        return None
    found = config.get("model_args")
    arguments = {str(key): value for key, value in found.items()} if isinstance(found, Mapping) else {}
    foreign = [f"{name}, which has anti-aliasing pools"] if _ANTI_ALIASED.search(name) else []
    foreign += [f"{key}={value}" for key, value in arguments.items() if not _is_harmless(key, value, spec)]
    if "global_pool" not in arguments and config.get("global_pool", "avg") not in _AVERAGES:
        foreign.append(f"global_pool={config['global_pool']}")
        arguments["global_pool"] = config["global_pool"]
    if "avg_down" not in arguments and (averages := _averages_in_v2(name, spec)) is not None:
        foreign.append(f"{name} with avg_down={averages}, as it has it by itself,")
    if not foreign:
        return None
    if "num_classes" in config:
        arguments.setdefault("num_classes", config["num_classes"])
    typed = "".join(f" --factory-arg {_typed(key, value)}" for key, value in arguments.items())
    return (
        f"config.json says {', '.join(foreign)}: no tensor tells it, and it isn't known here; {FACTORY}, such as "
        f"--factory timm:create_model --factory-arg {_typed('model_name', name)}{typed}"
    )


def _averages_in_v2(name: str, spec: Spec | None) -> bool | None:
    """Return whether the ResNetV2 called `name` has average pools in its shortcuts; None where `spec` agrees."""
    if not isinstance(spec, PreActResNetSpec) or not any(spec.projected_stages[1:]) or not _V2.match(name):
        return None
    averages = _V2_THAT_AVERAGES.match(name) is not None
    return None if averages is spec.pooled_shortcuts else averages


def _is_harmless(key: str, value: Any, spec: Spec | None) -> bool:
    if value is None:
        return True  # timm.create_model leaves it out
    if key in _NOTHING_AT_INFERENCE or key in _TOLD_BY_SHAPES:
        return True
    if key in _DEFAULTS:
        return _DEFAULTS[key](value)
    if key not in ("stem_type", "avg_down"):
        return False
    if spec is None:
        return True  # the refusal of the tensors says more
    if not isinstance(spec, ResNetSpec):
        return False
    if key == "avg_down":
        return value is spec.pooled_shortcuts or not any(spec.projected_stages[1:])
    if value not in ("", "deep", "deep_tiered", "tiered"):
        return False
    return bool(value) == (spec.stem == "deep-maxpool")


def _typed(key: str, value: Any) -> str:
    """Return the argument as `--factory-arg` takes it, quoted for a shell."""
    return shlex.quote(f"{key}={value if isinstance(value, str) else json.dumps(value)}")
