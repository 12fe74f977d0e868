"""What each precision is: the one place that tells FP32, FP16, BF16 and INT8 apart.

A precision is a row of `PRECISIONS`, which settings, packages, backends, checks and the export read.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

PrecisionName = Literal["fp32", "fp16", "bf16", "int8"]
"""Names of `--precision`. Each has a row in `PRECISIONS`, in the same order."""
GraphPrecision = Literal["fp32", "fp16", "int8"]
"""Members of `PrecisionName` that have artifacts of their own: names in manifests and of the export's flags."""
PrecisionChoice = Literal["auto", PrecisionName]
Device = Literal["cpu", "gpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """One precision: how near it must come to eager PyTorch FP32, what other software calls it, when it is chosen."""

    name: PrecisionName
    title: str
    """Name for people."""
    graph: GraphPrecision
    """Precision of the artifact that is run; another one than `name` where the runtime itself rounds to `name`."""
    asked_by: GraphPrecision
    """Precision whose graph in a package tells that the export was asked for this one."""
    max_difference: float
    """Largest difference of a logit that passes, as a share of the logits' range: on the export's images, and on the
    package's reference when a server starts."""
    min_agreement: float
    """Smallest share of the export's images with eager's answer, its top-1 class or set of labels; 0: no such bar."""
    ties_agree: bool
    """Whether an image counts as agreeing if eager's logits of the two answers differ by less than FP16 resolves."""
    quantised: bool
    """Whether values have scales that are found on calibration images; the export is then judged on other images."""
    onnx_type: str
    """Name of its type in `onnx.TensorProto.DataType`."""
    tensorrt_type: str
    """Name of its type in `tensorrt.DataType`; engine inspectors write it in another case."""
    may_remain: tuple[PrecisionName, ...]
    """Precisions in which an engine may compute the layers that the export left out of this one."""
    auto_on: tuple[Device, ...]
    """Devices on which `auto` takes it where the export was asked for it, in preference to the rows above."""


PRECISIONS: dict[str, Precision] = {
    row.name: row
    for row in (
        Precision(
            name="fp32",
            title="FP32",
            graph="fp32",
            asked_by="fp32",
            max_difference=1e-3,
            min_agreement=0.0,
            ties_agree=False,
            quantised=False,
            onnx_type="FLOAT",
            tensorrt_type="FLOAT",
            may_remain=(),
            auto_on=("cpu", "gpu"),
        ),
        Precision(
            name="fp16",
            title="FP16",
            graph="fp16",
            asked_by="fp16",
            # Tells rounding from nonsense only: the bar is agreement, which needs more images than a server's start.
            max_difference=5e-2,
            min_agreement=0.995,
            ties_agree=True,
            quantised=False,
            onnx_type="FLOAT16",
            tensorrt_type="HALF",
            may_remain=("fp32",),
            # Both CPU runtimes compute an FP16 graph in FP32, which gains nothing.
            auto_on=("gpu",),
        ),
        Precision(
            name="bf16",
            title="BF16",
            # From the FP16 graph the logits come out no better, and every package has this one. BF16 has FP32's range,
            # so that no layer has to stay in FP32.
            graph="fp32",
            asked_by="fp16",
            # As for FP16. Rounding comes to 0.003 on a ResNet-18.
            max_difference=5e-2,
            min_agreement=0.99,
            ties_agree=True,
            quantised=False,
            onnx_type="BFLOAT16",
            tensorrt_type="BF16",
            may_remain=("fp32",),
            auto_on=("cpu",),
        ),
        Precision(
            name="int8",
            title="INT8",
            graph="int8",
            asked_by="int8",
            # Its rounding comes to 0.03 on ResNets; where a CPU's products overflow 0.16 has been seen, with the class
            # right one time in eight.
            max_difference=0.1,
            min_agreement=0.98,
            # INT8 rounds far more coarsely than FP16: what is a tie there is a change of class here.
            ties_agree=False,
            quantised=True,
            onnx_type="INT8",
            tensorrt_type="INT8",
            # Between quantised layers either float will do.
            may_remain=("fp32", "fp16"),
            auto_on=(),
        ),
    )
}

LEAST_SHARE = 0.95
"""Smallest share of what a runtime was asked to hold or compute in a precision that must be in it: of an engine's
weights, or of the convolutions and matrix products that a CPU runtime computes."""

# FP16's numbers (IEEE 754-2019, table 3.5, binary16).
FP16_LARGEST = 65504.0
FP16_SMALLEST_NORMAL = 2.0**-14
FP16_ZERO_BELOW = 2.0**-25
"""Half the smallest subnormal number: up to here rounding gives zero."""
FP16_RESOLUTION = 2.0**-10
"""Spacing of numbers relative to their size: 11 significant bits."""


def chosen_unasked(device: Device) -> tuple[PrecisionName, ...]:
    """Return the precisions that `auto` takes on `device`, the preferred one first."""
    return tuple(row.name for row in reversed(PRECISIONS.values()) if device in row.auto_on)


CHOICES = ("auto", *PRECISIONS)
GPU_CHOICES = ("auto", *dict.fromkeys((*chosen_unasked("gpu"), *get_args(GraphPrecision))))
"""Members of `CHOICES` that engines are built in, those first that `auto` may take on a GPU."""


def precision_of_type(tensorrt_type: str) -> str:
    """Return the precision of a `tensorrt.DataType`, named in any case; its lower-case name if there is none."""
    names = {row.tensorrt_type.lower(): row.name for row in PRECISIONS.values()}
    return names.get(tensorrt_type.lower(), tensorrt_type.lower())


def listed(names: Iterable[str]) -> str:
    """Return `names` as a help text has them: `auto, fp32, fp16, bf16 or int8`."""
    *others, last = names
    return f"{', '.join(others)} or {last}"
