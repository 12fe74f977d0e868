"""The contenders of `fuseline bench gpu`, each opened in a process of its own.

All take the same uint8 pixels, NHWC, and give float32 logits; scaling and normalising are part of the time.

| name | what |
|---|---|
| eager | PyTorch FP32, NCHW, TF32 off: what the others are held against |
| eager-tf32 | the same as PyTorch ships: convolutions in TF32 |
| eager-fp16 | PyTorch FP16, channels_last |
| compiled | the same through torch.compile; on a CPU in FP32 |
| graphed | eager-fp16 captured in a CUDA graph |
| onnxruntime | the package's FP16 graph on ONNX Runtime's CUDA provider, IO bound; on a CPU the FP32 graph |
| tensorrt | the package's FP16 graph as an engine of TensorRT or TensorRT for RTX, through `fuseline.serve.backends` |
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.gpu.subject import GpuSubject

Device = Literal["cuda", "cpu"]
DEVICES: tuple[Device, ...] = get_args(Device)
Mode = Literal["resident", "host"]
Precision = Literal["fp32", "tf32", "fp16"]
MODES: dict[Mode, str] = {
    "resident": "pixels lie in the device's memory and logits stay there",
    "host": "from uint8 pixels in host memory to float32 logits in host memory, both copies included",
}
ELEMENT_BYTES: dict[Precision, int] = {"fp32": 4, "tf32": 4, "fp16": 2}
COMPILE_MODES = ("reduce-overhead", "max-autotune-no-cudagraphs", "default")


@dataclass(frozen=True, slots=True)
class Contender:
    """One contender, before it is opened."""

    title: str
    precision: Precision
    """Its precision on a GPU."""
    on_cpu: bool
    """Whether it is measured on a CPU, which it is in FP32."""

    def precision_on(self, device: Device) -> Precision:
        """What it computes in."""
        return "fp32" if device == "cpu" and self.on_cpu else self.precision


CONTENDERS = {
    "eager": Contender("eager PyTorch", "fp32", on_cpu=True),
    "eager-tf32": Contender("eager PyTorch", "tf32", on_cpu=False),
    "eager-fp16": Contender("eager PyTorch", "fp16", on_cpu=False),
    "compiled": Contender("torch.compile", "fp16", on_cpu=True),
    "graphed": Contender("PyTorch, CUDA graph", "fp16", on_cpu=False),
    "onnxruntime": Contender("ONNX Runtime", "fp16", on_cpu=True),
    "tensorrt": Contender("TensorRT", "fp16", on_cpu=False),
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A contender ready for one batch. Every call returns when its work is done."""

    resident: Callable[[], Any]
    """One call with pixels and logits in the device's memory."""
    resident_logits: Callable[[], NDArray[np.float32]]
    """The last resident call's."""
    host: Callable[[], NDArray[np.float32]] | None
    """One call from host memory to host memory; None on a CPU, where it is the resident one."""
    details: dict[str, Any]
    """Facts that its figures rest on, such as what an engine was built by, ready for JSON."""
    release: Callable[[], None]
    """Give the batch's memory back."""


class Opened(Protocol):
    """A contender in its process."""

    def prepare(self, subject: GpuSubject, pixels: NDArray[np.uint8]) -> Prepared:
        """Get ready for `pixels` (rows, height, width, channels): compile, build or capture, and allocate."""
        ...


@dataclass(frozen=True, slots=True)
class Answers:
    """What a prepared contender answers, to be checked before it is timed."""

    logits: dict[Mode, NDArray[np.float32]]
    details: dict[str, Any]


def modes_on(device: Device) -> tuple[Mode, ...]:
    """Which calls there are to time."""
    return ("resident", "host") if device == "cuda" else ("resident",)
