"""What each precision is: the one place that tells FP32, FP16 and INT8 apart.

A precision is a row of `PRECISIONS`, which settings, packages, backends, checks and the export read.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PrecisionName = Literal["fp32", "fp16", "int8"]
"""As manifests, `--precision` and the export's flags have it. Each has a row in `PRECISIONS`, in the same order."""
PrecisionChoice = Literal["auto", PrecisionName]
Device = Literal["cpu", "gpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """One precision: how near to eager PyTorch FP32 it must come, and how it is told and chosen."""

    name: PrecisionName
    title: str
    """For people."""
    max_difference: float
    """Largest logit difference that is let pass, as a share of the logits' range: by the export on its images, by a
    server on the package's reference."""
    min_agreement: float
    """Smallest share of the export's images with eager's answer, its top-1 class or set of labels; 0: no bar on it."""
    ties_agree: bool
    """Whether another answer agrees too if eager's logits of the two differ by less than FP16 resolves."""
    quantised: bool
    """Whether values are integers with scales found on calibration images: the export is judged on the other images."""
    onnx_type: str
    """Name of its `onnx.TensorProto.DataType`."""
    tensorrt_type: str
    """Name of its `tensorrt.DataType`, and in other letters what engine inspectors call it."""
    may_remain: tuple[PrecisionName, ...]
    """Precisions of those layers of its graph that the export left out of it."""
    auto_on: tuple[Device, ...]
    """Devices on which `auto` takes it where the package has it, sooner than the rows above."""


PRECISIONS: dict[str, Precision] = {
    row.name: row
    for row in (
        Precision(
            name="fp32",
            title="FP32",
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
            # Only tells rounding from nonsense: the bar is agreement, for which a server's start has too few images.
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
            name="int8",
            title="INT8",
            # Its rounding comes to 0.03 on ResNets; where a CPU's products overflow 0.16 has been seen, with the class
            # right one time in eight.
            max_difference=0.1,
            min_agreement=0.98,
            # It rounds far more coarsely than FP16: what FP16 takes for a tie is a change of class all the same.
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

# FP16's numbers (IEEE 754-2019, table 3.5, binary16).
FP16_LARGEST = 65504.0
FP16_SMALLEST_NORMAL = 2.0**-14
FP16_ZERO_BELOW = 2.0**-25
"""Half the smallest subnormal number: up to here rounding gives zero."""
FP16_RESOLUTION = 2.0**-10
"""Spacing of numbers relative to their size: 11 significant bits."""


def chosen_unasked(device: Device) -> tuple[PrecisionName, ...]:
    """The precisions that `auto` takes on `device`, the one that is preferred first."""
    return tuple(row.name for row in reversed(PRECISIONS.values()) if device in row.auto_on)


CHOICES = ("auto", *PRECISIONS)
GPU_CHOICES = ("auto", *dict.fromkeys((*chosen_unasked("gpu"), *PRECISIONS)))
"""Those that `auto` may mean on a GPU come first."""


def precision_of_type(tensorrt_type: str) -> str:
    """The precision of a `tensorrt.DataType`, by its name in any letters; that name in small ones if it has none."""
    names = {row.tensorrt_type.lower(): row.name for row in PRECISIONS.values()}
    return names.get(tensorrt_type.lower(), tensorrt_type.lower())


def listed(names: Iterable[str]) -> str:
    """For help texts: `auto, fp32, fp16 or int8`."""
    *others, last = names
    return f"{', '.join(others)} or {last}"
