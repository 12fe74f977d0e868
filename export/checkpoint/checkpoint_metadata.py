"""Metadata beside the weights that says how the network is used: labels, normalisation, sizes."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from torch import Tensor

from fuseline.export.checkpoint.inert_objects import Inert, attributes_of
from fuseline.export.checkpoint.wrapper_prefixes import pixel_statistics, printable
from fuseline.serve.model_package import MAX_INPUT_SIDE

LABEL_KEYS = ("labels", "classes", "class_names", "class_to_idx")
HYPER_PARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters", "hparams")

_FORMS = {
    "labels": "a list of texts",
    "mean": "a list of finite numbers",
    "std": "a list of finite numbers above 0",
    "input_size": f"a whole number from 1 to {MAX_INPUT_SIDE}",
    "resize_shorter_side": f"a whole number from 1 to {2 * MAX_INPUT_SIDE}",
    "interpolation": "bilinear or bicubic",
    "crop_offset": "rounded or floored",
    "problem_type": "single_label_classification, multi_label_classification or regression",
}
_CHOICES = {"interpolation": ("bilinear", "bicubic"), "crop_offset": ("rounded", "floored")}
_TASKS = {
    "singlelabelclassification": "single-label",
    "multilabelclassification": "multi-label",
    "regression": "regression",
    "singlelabel": "single-label",
    # torchmetrics' names.
    "multiclass": "single-label",
    "multilabel": "multi-label",
}
_KEYS = (*LABEL_KEYS, "mean", "std", "input_size", "resize_shorter_side", *_CHOICES, "problem_type", "task")
_MAX_CHANNELS = 64
_PLACEHOLDER = re.compile(r"LABEL_\d+")  # transformers' names of classes without names
_PIL_FILTERS = {2: "bilinear", 3: "bicubic"}
_HUGGING_FACE_WARPS_FROM = 384
_CONVNEXT_CROP = 224 / 256
_TIMM_CROP = 0.875
_LEVIT_RESIZE = 256 / 224
_LEAST_CROP = 0.05
_LARGEST = {"input_size": MAX_INPUT_SIDE, "resize_shorter_side": 2 * MAX_INPUT_SIDE}
_LARGEST_STATISTIC = 1e6


def metadata_beside(levels: list[Mapping[Any, Any]], notes: list[str]) -> dict[str, Any]:
    """Return the metadata on the levels from a file's root to its weights, and among Lightning's hyper-parameters.

    Hyper-parameters may be nested one level deep. A value that hasn't the expected form is left out, and noted.
    """
    metadata: dict[str, Any] = {}
    for level in levels:
        _take(metadata, level, notes, "beside the weights")
    if levels and (statistics := pixel_statistics(levels[-1])):
        _take(metadata, statistics, notes, "among the weights")
    for level in levels:
        for key in HYPER_PARAMETERS:
            outer = _entries(level.get(key))
            nested = {id(value): value for value in outer.values()}
            for settings in (outer, *map(_entries, nested.values())):
                wanted = {name: settings[name] for name in _KEYS if name in settings}
                # There `classes: 10` is a number of classes, not their names.
                counted = {name for name in LABEL_KEYS if type(_value(wanted.get(name))) is int}
                _take(metadata, {name: wanted[name] for name in wanted.keys() - counted}, notes, f"in `{key}`")
    return metadata


def metadata_of_config(config: Mapping[str, Any], preprocessor: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the metadata of transformers' config.json and preprocessor_config.json, or of timm's config.json.

    Its `warnings` have a sentence for each setting that costs accuracy because Fuseline can't do the same.
    """
    warnings: list[str] = []
    found = _of_timm(config, warnings) if "architecture" in config else _of_hugging_face(config, preprocessor, warnings)
    found["problem_type"] = config.get("problem_type")
    metadata: dict[str, Any] = {"warnings": warnings} if warnings else {}
    _take(metadata, found, notes, "in the folder's configuration")
    return metadata


def _take(metadata: dict[str, Any], level: Mapping[Any, Any], notes: list[str], where: str) -> None:
    for key in _KEYS:
        target = "labels" if key in LABEL_KEYS else "task" if key == "problem_type" else key
        if target in metadata or level.get(key) is None:
            continue
        value = _well_formed(target, _value(level[key]))
        if value is None:
            if key in _FORMS or target in _FORMS:  # a `task` may be anything else too
                notes.append(f"`{key}` {where} is left out: expected {_FORMS.get(target) or _FORMS[key]}")
        else:
            metadata[target] = value


def _well_formed(target: str, value: Any) -> Any:
    """Return `value` as plain str, float, int or list of them, or None if it isn't what `target` must be."""
    if isinstance(value, Tensor):
        value = value.flatten().tolist() if value.numel() <= _MAX_CHANNELS else None
    if target == "labels":
        return _labels(value)
    if target == "task":
        return _TASKS.get(re.sub("[-_ ]", "", value).lower()) if isinstance(value, str) else None
    if target in ("input_size", "resize_shorter_side"):
        return value if type(value) is int and 0 < value <= _LARGEST[target] else None
    if target in _CHOICES:
        return value if value in _CHOICES[target] else None
    if not isinstance(value, list | tuple) or not value or any(type(number) not in (int, float) for number in value):
        return None
    if not all(abs(number) <= _LARGEST_STATISTIC and (target == "mean" or number > 0) for number in value):
        return None
    return [float(number) for number in value]


def _labels(value: Any) -> list[str] | None:
    """Return the labels of a list, `{0: "cat"}`, `{"0": "cat"}` or `{"cat": 0}`; indices must be 0 to n - 1."""
    if isinstance(value, dict):
        pairs = list(value.items())
        if pairs and all(type(index) is int for _, index in pairs):
            pairs = [(index, label) for label, index in pairs]
        indexed = {int(index): label for index, label in pairs if _is_index(index)}
        if len(indexed) != len(value) or indexed.keys() != set(range(len(indexed))):
            return None
        value = [indexed[index] for index in range(len(indexed))]
    if not isinstance(value, list | tuple) or not value:
        return None
    return list(value) if all(isinstance(label, str) and printable(label) == label for label in value) else None


def _is_index(key: Any) -> bool:
    return type(key) is int or (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10)


def _entries(value: Any) -> Mapping[Any, Any]:
    """Return the entries of a dict, a namespace or a node of OmegaConf; none of anything else."""
    entries: Any = attributes_of(value)
    if isinstance(value, Inert) and value.name.startswith("omegaconf."):
        entries = entries.get("_content")
    return entries if isinstance(entries, dict) else {}


def _value(value: Any, depth: int = 0) -> Any:
    """Return `value` without the nodes that OmegaConf wraps it in, and a subclass of list as a list."""
    if not isinstance(value, Inert) or depth > 2:
        return value
    if not value.name.startswith("omegaconf."):
        return value.items or value
    attributes = attributes_of(value)
    content = attributes.get("_content", attributes.get("_val"))
    if isinstance(content, list):
        return [_value(item, depth + 1) for item in content]
    if isinstance(content, dict):
        return {key: _value(item, depth + 1) for key, item in content.items()}
    return content


def _of_hugging_face(config: Mapping[str, Any], preprocessor: Mapping[str, Any], warnings: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    labels = config.get("id2label")
    if isinstance(labels, dict) and not all(_PLACEHOLDER.fullmatch(str(label)) for label in labels.values()):
        found["labels"] = labels
    found |= _hugging_face_normalisation(preprocessor)
    if preprocessor.get("do_flip_channel_order"):
        warnings.append(
            "the folder's preprocessor swaps red and blue; Fuseline gives networks RGB: swap the input channels of the "
            "first convolution, or accuracy is lost"
        )
    if preprocessor.get("do_resize", True):
        found |= dict(_hugging_face_sizes(preprocessor, warnings))
        resample = preprocessor.get("resample")
        found["interpolation"] = _PIL_FILTERS.get(resample, resample) if type(resample) is int else resample
    else:
        warnings.append(
            "the folder's preprocessor never resizes; Fuseline resizes and crops: --input-size says to what"
        )
    return found


def _hugging_face_normalisation(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """Return `mean` and `std` of pixels scaled to 0..1; the processor may scale otherwise, by `rescale_factor`."""
    mean, std = preprocessor.get("image_mean"), preprocessor.get("image_std")
    if preprocessor.get("do_normalize") is False:
        mean, std = [0.0] * 3, [1.0] * 3
    mean, std = _well_formed("mean", mean), _well_formed("std", std)
    if mean is None or std is None:
        return {"mean": preprocessor.get("image_mean"), "std": preprocessor.get("image_std")}
    kind = str(preprocessor.get("image_processor_type"))
    if kind.startswith("EfficientNet") and preprocessor.get("include_top"):
        std = [value * value for value in std]  # it divides by the deviation twice
    factor = preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 1.0
    if type(factor) not in (int, float) or not 1e-6 < factor < 1e6:
        return {}
    whole = 1.0 if abs(255 * factor - 1) < 1e-6 else 255 * factor
    offset = 1.0 if preprocessor.get("rescale_offset") and preprocessor.get("do_rescale", True) else 0.0
    return {"mean": [(value + offset) / whole for value in mean], "std": [value / whole for value in std]}


def _hugging_face_sizes(preprocessor: Mapping[str, Any], warnings: list[str]) -> Iterator[tuple[str, int | str]]:
    """Yield the sizes of ConvNextImageProcessor, which transformers' ResNets use, or of one that resizes and crops.

    Their `center_crop` cuts off half of the excess, floored (transformers' image_transforms.py).
    """
    side, crop = _side(preprocessor.get("size")), _side(preprocessor.get("crop_size"))
    if side is None:
        if preprocessor.get("size") is not None:
            warnings.append("the folder's preprocessor resizes to no square; give --input-size HEIGHTxWIDTH")
        return
    kind = str(preprocessor.get("image_processor_type") or preprocessor.get("feature_extractor_type"))
    resizes_shorter_side = not isinstance(preprocessor["size"], dict) or "shortest_edge" in preprocessor["size"]
    is_convnext = kind.startswith("ConvNext")
    share = preprocessor.get("crop_pct") or (_CONVNEXT_CROP if is_convnext else None)
    warps = is_convnext and side >= _HUGGING_FACE_WARPS_FROM
    if preprocessor.get("do_center_crop") and crop is not None and resizes_shorter_side and not warps:
        resized = int(side * _LEVIT_RESIZE) if kind.startswith("Levit") else side
        if _is_share(share) and (crop <= side or not is_convnext):  # ConvNext's resizing crops to `side` first
            resized = int(side / share)
        yield "input_size", crop
        if resized >= crop:
            yield "resize_shorter_side", resized
            yield "crop_offset", "floored"
        else:
            warnings.append(
                f"the folder's preprocessor resizes to {resized} and pads to {crop}; Fuseline never pads: it resizes "
                "to more and crops"
            )
        return
    yield "input_size", side
    if resizes_shorter_side and side < _HUGGING_FACE_WARPS_FROM and _is_share(share):
        yield "resize_shorter_side", int(side / share)
        yield "crop_offset", "floored"
    else:
        # At least the whole shorter side is then seen.
        yield "resize_shorter_side", side
        warnings.append(
            f"the folder's preprocessor stretches every image to {side} x {side}; Fuseline keeps its shape and crops, "
            "which may cost accuracy"
        )


def _is_share(share: Any) -> TypeGuard[float]:
    return type(share) in (int, float) and _LEAST_CROP <= share <= 1


def _side(size: Any) -> int | None:
    """Return the side of a square, or the shorter side; None of any other size."""
    if isinstance(size, dict):
        sides = {size[key] for key in ("shortest_edge", "height", "width") if type(size.get(key)) is int}
        size = sides.pop() if len(sides) == 1 else None
    return size if type(size) is int and 0 < size <= MAX_INPUT_SIDE else None


def _of_timm(config: Mapping[str, Any], warnings: list[str]) -> dict[str, Any]:
    """Return timm's settings as its `_parse_model_cfg` and `transforms_imagenet_eval` read them.

    Older files have everything at the root.
    """
    nested = config.get("pretrained_cfg")
    settings = nested if isinstance(nested, dict) else config
    labels = config.get("label_names") or settings.get("label_names") or settings.get("labels")
    found = {"labels": labels} | {key: settings.get(key) for key in ("mean", "std", "interpolation")}
    size = settings.get("input_size")
    if not isinstance(size, list) or len(size) != 3:
        return found
    if size[1] != size[2]:
        warnings.append(
            f"the folder's configuration has images of {str(size[1])[:8]} x {str(size[2])[:8]}, no square; give "
            "--input-size HEIGHTxWIDTH"
        )
        return found
    found["input_size"] = size[1]
    share = settings.get("crop_pct") or _TIMM_CROP
    if settings.get("crop_mode", "center") != "center":
        warnings.append(
            f"timm's crop mode {printable(str(settings['crop_mode'])[:20])} isn't Fuseline's: it resizes the shorter "
            "side and crops, which may cost accuracy"
        )
    elif type(size[1]) is int and 0 < size[1] <= MAX_INPUT_SIDE and _is_share(share):
        found["resize_shorter_side"] = math.floor(size[1] / share)
    return found
