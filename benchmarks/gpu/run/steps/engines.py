"""Step 4: the engines beside PyTorch, as `fuseline bench gpu` measures them, one network after the other."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fuseline.benchmarks.gpu.comparison import GpuPlan, GpuRow, GpuRun, run_gpu
from fuseline.benchmarks.gpu.contender import CONTENDERS, modes_on
from fuseline.benchmarks.gpu.report import row_as_json
from fuseline.benchmarks.gpu.run.job import Emit, Job
from fuseline.benchmarks.gpu.run.record import Row
from fuseline.benchmarks.harness.stats import spread_of

_SLOW_TO_PREPARE = "compiled"
"""torch.compile takes most of a minute for each batch, so it comes last and for few."""
_LEAST_S = 30.0
_SECONDS = 0.3
_ROUNDS = 3
_SPARE_S = 5.0
"""A run takes its minutes and up to one round more."""
_SHARE_OF_FIRST = 0.6
"""Share of the time for the first network, while there are others."""


def run(job: Job, emit: Emit) -> None:
    """Every network at every batch, then torch.compile at the largest if time is left."""
    quick = tuple(name for name in CONTENDERS if name != _SLOW_TO_PREPARE)
    for number, model in enumerate(job.plan.models):
        share = _SHARE_OF_FIRST if number + 1 < len(job.plan.models) else 1.0
        _measure(job, emit, model, job.plan.batches, quick, job.left_s * share)
    if job.left_s > _LEAST_S:
        _measure(job, emit, job.plan.models[0], (max(job.plan.batches),), ("eager", _SLOW_TO_PREPARE), job.left_s)


def _measure(
    job: Job, emit: Emit, model: str, batches: tuple[int, ...], contenders: tuple[str, ...], seconds: float
) -> None:
    plan = GpuPlan(
        models=(model,),
        batches=batches,
        contenders=contenders,
        device=job.plan.device,
        rounds=_ROUNDS,
        seconds=_SECONDS,
        minutes=max(seconds - _SPARE_S, 0.0) / 60,
        engine_for=job.found.get("engine_for"),
        largest_first=True,
    )

    def on_case(so_far: GpuRun, rows: Sequence[GpuRow]) -> None:
        for row in rows:
            emit(_row(so_far, row))

    finished = run_gpu(plan, print, on_case)
    clocks = {"gpu_before": finished.gpu_before, "gpu_after": finished.gpu_after}
    for peak in finished.peaks:
        emit(Row(what=f"peaks of {peak.device}, beside {model}", figures=asdict(peak), details=clocks))
    for reason in finished.peak_failures:
        emit(Row(what=f"peaks, beside {model}", status="failed", reason=reason))


def _row(run: GpuRun, row: GpuRow) -> Row:
    title = f"{CONTENDERS[row.contender].title} {row.precision.upper()}"
    found = row_as_json(run, row)
    figures: dict[str, Any] = {}
    if row.status == "measured":
        for mode in modes_on(run.plan.device):
            name = "" if mode == "resident" else ", host"
            ratios = found[mode]["ratio_to_eager"]
            figures[f"images/s{name}"] = spread_of(row.modes[mode].images_per_s).median
            figures[f"ms{name}"] = row.modes[mode].latency_ms.median
            figures[f"x eager FP32{name}"] = None if ratios is None else ratios["median"]
        work = found["work"]
        figures |= {"TFLOPS": work["tflops"], "of the sheet's FP16": work["of_sheet_fp16_peak"]}
    return Row(
        what=f"{row.model}, batch {row.batch}: {title}",
        status=row.status,
        reason=row.reason,
        figures=figures,
        details={key: value for key, value in found.items() if key not in ("status", "reason")},
    )
