"""The mixed-precision search of FP16: the layers that must stay FP32, the reasons, and the resulting graph."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from fuseline.export.fp16.checkpoint_names import checkpoint_name, nodes_matching
from fuseline.export.fp16.error_search import layers_that_disturb
from fuseline.export.fp16.float_nodes import MOVERS, float_nodes
from fuseline.export.fp16.fp16_graph import fp16_from_fp32, with_unweighted_behind
from fuseline.export.fp16.fp16_trial import Fp16Trial
from fuseline.export.fp16.layer_ranges import LayerRange, calibrate, spread
from fuseline.export.graph.onnx_graph import pixel_nodes
from fuseline.export.graph.precision_share import PrecisionShare, check_share
from fuseline.serve.errors import VerificationError
from fuseline.serve.precision import FP16_LARGEST

SAFETY_MARGIN = 4.0
"""Factor by which an activation must stay below 65504, as calibration images are only a sample. In a trained ResNet-20
a layer's largest activation on 1000 pictures is up to 1.6 times that on 64 of them and 2.8 times that on 64 generated
images; for black and white noise it is 2.4 times that for 64 pictures."""
LAYER_TOLERANCE = 1e-2
"""Largest `LayerRange.deviation` of a layer in FP16. FP16's own rounding makes 2e-4 to 7e-4; more is due to numbers
below 2**-14."""
LOGITS_TOLERANCE = 1e-2
"""Largest difference of a logit from FP32's, as a share of the logits' range. It is a fifth of what verification
allows, which has other images, and runtimes that add in another order. FP16's own rounding makes 2e-4 to 2e-3 in
families of ResNets with random weights and in a trained ResNet-20."""
_TRIAL_IMAGES = 32
_SEARCH_IMAGES = 8
"""Number of images of the search, which tries many graphs; its result is tried on more images."""
_CALIBRATION_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """A layer that stays in FP32."""

    layer: str
    """The checkpoint's name; for a layer without weights, the module that calls it and its operator."""
    reasons: tuple[str, ...]
    """Reasons for people, with figures."""
    asked: bool
    """Whether `keep` names it; else FP16 can't hold it."""
    range: LayerRange


@dataclass(frozen=True, slots=True)
class MixedFp16Graph:
    """A strongly typed graph, FP16 but for the layers that stay in FP32."""

    model: onnx.ModelProto
    kept: tuple[KeptLayer, ...]
    """The layers that stay in FP32, in running order."""
    ranges: tuple[LayerRange, ...]
    """The range of every layer, in running order, with the checkpoint's name."""
    share: PrecisionShare
    """The share of FP16, read back from `model`."""
    fp32_nodes: frozenset[str]
    """The nodes of `model` in FP32: those of `kept`, and those without weights that only read their results."""
    deviation: float
    """Largest difference of a logit from FP32's on calibration images, as a share of the logits' range, with each FP16
    value stored in 16 bits as on a GPU."""


def mixed_fp16_from_fp32(
    model: onnx.ModelProto,
    pixels: NDArray[np.uint8],
    *,
    layer_names: Mapping[str, str],
    keep: Sequence[str] = (),
    strict: bool = False,
    on_progress: Callable[[float], None] = lambda _: None,
) -> MixedFp16Graph:
    """Return the FP16 graph of `model` (as `onnx_from_network` makes it) that doesn't overflow on images like `pixels`.

    A layer stays in FP32 if a folded weight is beyond 65504, if its input or output comes nearer to that than
    `SAFETY_MARGIN` allows, if FP16 changes its output beyond `LAYER_TOLERANCE`, or if it is among those that together
    move the logits beyond `LOGITS_TOLERANCE`. If no layer must stay, the graph is `fp16_from_fp32(model)`, byte for
    byte.

    Args:
        pixels: calibration images, uint8 (n, h, w, c).
        layer_names: the module's names of layers to the checkpoint's, for every layer with weights.
        keep: regular expressions; a layer in whose name in the checkpoint one is found stays in FP32 too.
        strict: whether to refuse instead of keeping a layer in FP32 that `keep` doesn't name.
        on_progress: called with the share of the work that is done, 0 to 1.

    Raises:
        InputError: one of `keep` is no regular expression, or is found in no layer's name.
        VerificationError: layers would have to stay in FP32, and `strict`; the message has each with its figures. Or no
            layer can be FP16, or the FP32 graph itself overflows.
        BackendUnavailableError: ONNX Runtime is not installed.
        BackendError: ONNX Runtime fails.
    """
    nodes = float_nodes(model, {node.name for node in pixel_nodes(model)})
    asked = nodes_matching(keep, nodes, layer_names)
    calibration = calibrate(model, pixels, lambda done: on_progress(_CALIBRATION_SHARE * done))
    if not np.isfinite(calibration.logits).all():
        raise VerificationError("the FP32 graph itself gives NaN or infinite logits; FP16 can't do better")
    troubles = {found.layer: why for found in calibration.ranges if (why := _troubles(found))}

    def trial(images: int) -> Fp16Trial:
        some = spread(len(pixels), images)
        return Fp16Trial(model, nodes, pixels[some], calibration.logits[some])

    whole = trial(_TRIAL_IMAGES)
    stay = {*asked, *troubles}
    deviation = whole.deviation(stay, lambda done: on_progress(_CALIBRATION_SHARE + (1 - _CALIBRATION_SHARE) * done))
    if deviation > LOGITS_TOLERANCE:
        disturbing = layers_that_disturb(
            [node.name for node in nodes.nodes if node.name not in stay and node.proto.op_type not in MOVERS],
            alone=trial(_SEARCH_IMAGES).deviation_of,
            without=lambda left: whole.deviation({*stay, *left}),
            tolerance=LOGITS_TOLERANCE,
        )
        troubles |= {node: (_moves_logits(alone),) for node, alone in disturbing.items()}
        stay |= disturbing.keys()
        deviation = whole.deviation(stay)

    ranges = [replace(found, layer=checkpoint_name(found.layer, layer_names)) for found in calibration.ranges]
    kept = tuple(
        KeptLayer(
            layer=named.layer,
            reasons=(*_asked_for(asked.get(found.layer)), *troubles.get(found.layer, ())),
            asked=found.layer in asked,
            range=named,
        )
        for found, named in zip(calibration.ranges, ranges, strict=True)
        if found.layer in stay
    )
    if strict:
        _refuse([layer for layer in kept if not layer.asked])
    fp32_nodes = with_unweighted_behind(nodes, stay)
    mixed = fp16_from_fp32(model, fp32_nodes)
    return MixedFp16Graph(
        model=mixed,
        kept=kept,
        ranges=tuple(ranges),
        share=check_share(mixed, "fp16", stay),
        fp32_nodes=fp32_nodes,
        deviation=deviation,
    )


def _troubles(found: LayerRange) -> tuple[str, ...]:
    """Return sentences: why FP16 can't hold a layer; none if it can."""
    limit = FP16_LARGEST / SAFETY_MARGIN
    troubles = [
        f"a folded {what} of {largest:.4g} is beyond 65504"
        for what, largest in (("weight", found.largest_weight), ("bias", found.largest_bias))
        if largest is not None and largest > FP16_LARGEST
    ]
    troubles += [
        f"its {what} reaches {largest:.4g}; FP16 ends at 65504, and at {limit:.0f} with a margin of {SAFETY_MARGIN:g}"
        for what, largest in (("input", found.largest_input), ("output", found.largest_output))
        if largest > limit
    ]
    # A layer that overflows, which was said above, deviates beyond all bounds too.
    if not troubles and found.deviation > LAYER_TOLERANCE:
        lost = f", {found.lost_share:.0%} of its weights become zero" if found.lost_share else ""
        small = f", {found.subnormal_share:.0%} lie below 2**-14" if found.subnormal_share else ""
        troubles.append(
            f"FP16 changes its output, of root mean square {found.typical_output:.3g}, by {found.deviation:.2%}; "
            f"{LAYER_TOLERANCE:.0%} is allowed{lost}{small}"
        )
    return tuple(troubles)


def _moves_logits(alone: float) -> str:
    return (
        f"in FP16 it moves a logit by {alone:.2%} of the logits' range, and all layers together by more than "
        f"{LOGITS_TOLERANCE:.0%}"
    )


def _asked_for(pattern: str | None) -> tuple[str, ...]:
    return () if pattern is None else (f"--keep-fp32 {pattern!r} was given",)


def _refuse(kept: Sequence[KeptLayer]) -> None:
    if kept:
        listed = "; ".join(f"{layer.layer} ({layer.range.operator}): {', '.join(layer.reasons)}" for layer in kept)
        raise VerificationError(
            f"--strict-fp16: FP16 can't hold {len(kept)} layers, which would stay in FP32: {listed}. Leave "
            "--strict-fp16 out to keep them in FP32, or name them with --keep-fp32"
        )
