"""What a GPU can do at most: by its maker's data sheet, and measured in the same run."""

from dataclasses import dataclass
from typing import Any

from fuseline.benchmarks.harness.timing import timed_calls

_HOPPER = "NVIDIA H100 Tensor Core GPU data sheet"
_AMPERE = "NVIDIA A100 Tensor Core GPU data sheet"
_ADA = "NVIDIA Ada GPU Architecture white paper, appendix"


@dataclass(frozen=True, slots=True)
class SheetPeak:
    """Peaks of one GPU model: dense products (no 2:4 sparsity) with FP16 inputs, at boost clocks."""

    fp16_tflops: float
    """The highest of the rates for FP16 and FP32 accumulation, so that no share is flattered."""
    memory_gb_s: float
    """10^9 bytes a second."""
    source: str


# By the exact name that CUDA gives. A slice of a GPU (MIG) has another name, and so no peak here.
SHEET_PEAKS = {
    "NVIDIA H200": SheetPeak(989.5, 4800, "NVIDIA H200 Tensor Core GPU data sheet: 1,979 with sparsity, halved"),
    "NVIDIA H100 80GB HBM3": SheetPeak(989.5, 3350, f"{_HOPPER}, SXM: 1,979 with sparsity, halved"),
    "NVIDIA H100 PCIe": SheetPeak(756.5, 2000, f"{_HOPPER}, PCIe: 1,513 with sparsity, halved"),
    "NVIDIA H100 NVL": SheetPeak(835.5, 3900, f"{_HOPPER}, NVL: 1,671 with sparsity, halved"),
    "NVIDIA A100-SXM4-80GB": SheetPeak(312, 2039, f"{_AMPERE}, 80GB SXM"),
    "NVIDIA A100-SXM4-40GB": SheetPeak(312, 1555, f"{_AMPERE}, 40GB SXM"),
    "NVIDIA A100 80GB PCIe": SheetPeak(312, 1935, f"{_AMPERE}, 80GB PCIe"),
    "NVIDIA A100-PCIE-40GB": SheetPeak(312, 1555, f"{_AMPERE}, 40GB PCIe"),
    "NVIDIA A30": SheetPeak(165, 933, "NVIDIA A30 Tensor Core GPU data sheet"),
    "NVIDIA A10": SheetPeak(125, 600, "NVIDIA A10 Tensor Core GPU data sheet"),
    "NVIDIA L40S": SheetPeak(362.05, 864, "NVIDIA L40S data sheet"),
    "NVIDIA L4": SheetPeak(121, 300, "NVIDIA L4 Tensor Core GPU data sheet: 242 with sparsity, halved"),
    "Tesla T4": SheetPeak(65, 320, "NVIDIA T4 Tensor Core GPU data sheet"),
    "Tesla V100-SXM2-16GB": SheetPeak(125, 900, "NVIDIA V100 Tensor Core GPU data sheet, SXM2"),
    "Tesla V100-SXM2-32GB": SheetPeak(125, 900, "NVIDIA V100 Tensor Core GPU data sheet, SXM2"),
    "NVIDIA GeForce RTX 4090": SheetPeak(330.3, 1008, f"{_ADA} A: FP16 with FP16 accumulation"),
    "NVIDIA GeForce RTX 4080": SheetPeak(194.9, 716.8, f"{_ADA} A: FP16 with FP16 accumulation"),
    "NVIDIA GeForce RTX 3090": SheetPeak(
        142, 936, "NVIDIA Ampere GA102 GPU Architecture white paper: FP16 with FP16 accumulation"
    ),
}


@dataclass(frozen=True, slots=True)
class MeasuredPeak:
    """Peaks of this machine in this run, by PyTorch: the best call of each."""

    device: str
    """The GPU's name, by which its data sheet is found, or `cpu`."""
    matmul_tflops: float
    matmul: str
    """What was multiplied: `8192 x 8192 float16`."""
    copy_gb_s: float
    """Bytes read plus bytes written, 10^9 a second."""
    copy_mib: int
    """Size of what was copied, which no cache holds on a GPU."""


def measure_peak(device: str, seconds: float) -> MeasuredPeak:
    """Time a large matrix product (FP16 on a GPU, FP32 on a CPU) and a large copy within the memory of `device`."""
    import torch

    side, mib, dtype = (8192, 1024, torch.float16) if device == "cuda" else (1024, 64, torch.float32)
    multiply_s = _multiply_s(device, side, dtype, seconds)
    copy_s = _copy_s(device, mib * 2**20, seconds)
    if device == "cuda":
        torch.cuda.empty_cache()
    return MeasuredPeak(
        device=torch.cuda.get_device_name() if device == "cuda" else device,
        matmul_tflops=2 * side**3 / multiply_s / 1e12,
        matmul=f"{side} x {side} {str(dtype).removeprefix('torch.')}",
        copy_gb_s=2 * mib * 2**20 / copy_s / 1e9,
        copy_mib=mib,
    )


def peak_shares(tflops: float, gb_s: float, sheet: SheetPeak | None, measured: MeasuredPeak | None) -> dict[str, Any]:
    """Shares of each peak, 0 to about 1; None where that peak is not known."""
    return {
        "of_sheet_fp16_peak": tflops / sheet.fp16_tflops if sheet else None,
        "of_measured_matmul": tflops / measured.matmul_tflops if measured else None,
        "of_sheet_bandwidth": gb_s / sheet.memory_gb_s if sheet else None,
        "of_measured_copy": gb_s / measured.copy_gb_s if measured else None,
    }


def _multiply_s(device: str, side: int, dtype: Any, seconds: float) -> float:
    import torch

    # Not zeros: products of zeros draw less power, clock higher and flatter the peak.
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)

    def multiply() -> None:
        torch.mm(left, right, out=product)
        _wait(device)

    return min(timed_calls(multiply, seconds))


def _copy_s(device: str, size: int, seconds: float) -> float:
    import torch

    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        _wait(device)

    return min(timed_calls(copy, seconds))


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
