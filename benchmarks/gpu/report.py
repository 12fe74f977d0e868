"""A run of the GPU benchmark as JSON and as a table."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from fuseline.benchmarks.gpu import work as work_counted
from fuseline.benchmarks.gpu.comparison import GpuRow, GpuRun
from fuseline.benchmarks.gpu.contender import CONTENDERS, ELEMENT_BYTES, MODES, Mode, modes_on
from fuseline.benchmarks.gpu.peaks import SHEET_PEAKS, SheetPeak, peak_shares
from fuseline.benchmarks.harness.stats import Spread, pair_ratios, spread_of

_BASELINE = "eager"
_SHARES = {
    "of_sheet_fp16_peak": "% FP16 sheet",
    "of_measured_matmul": "% matmul",
    "of_sheet_bandwidth": "% GB/s sheet",
    "of_measured_copy": "% copy",
}


def as_json(run: GpuRun) -> dict[str, Any]:
    """Everything measured, with what shares are taken of and how work is counted."""
    sheet = _sheet(run)
    return {
        "plan": asdict(run.plan) | {"models": list(run.subjects)},
        "gpu_before": run.gpu_before,
        "gpu_after": run.gpu_after,
        "peaks": {
            "sheet": asdict(sheet) if sheet else None,
            "sheet_missing": None if sheet else _why_no_sheet(run),
            "measured": [asdict(peak) for peak in run.peaks],
            "failures": run.peak_failures,
        },
        "modes": {mode: MODES[mode] for mode in modes_on(run.plan.device)},
        "timing": "synchronised wall time of one call at a time, after a burn-in; answers checked before",
        "work_counted": work_counted.__doc__,
        "networks": {
            title: {"input_side": subject.input_side, **asdict(subject.work)} for title, subject in run.subjects.items()
        },
        "rows": [row_as_json(run, row) for row in run.rows],
    }


def as_tables(run: GpuRun) -> list[Table]:
    """One table for each network: medians (quartiles of rounds, of calls for the latency)."""
    return [_table(run, title) for title in run.subjects]


def row_as_json(run: GpuRun, row: GpuRow) -> dict[str, Any]:
    """One row with its ratios and shares, as far as the run has come."""
    record: dict[str, Any] = {
        "model": row.model,
        "batch": row.batch,
        "contender": row.contender,
        "precision": row.precision,
        "status": row.status,
        "reason": row.reason,
        "details": row.details,
    }
    for mode, figures in row.modes.items():
        ratios = _ratios(run, row, mode)
        record[mode] = {
            "images_per_s": figures.images_per_s,
            "images_per_s_spread": asdict(spread_of(figures.images_per_s)),
            "latency_ms": asdict(figures.latency_ms),
            "ratio_to_eager": asdict(ratios) if ratios else None,
        }
    if "resident" in row.modes:
        record["work"] = _work(run, row, _sheet(run))
    return record


def _work(run: GpuRun, row: GpuRow, sheet: SheetPeak | None) -> dict[str, Any]:
    """Rates of useful work while pixels and logits stay on the device, and their shares of the peaks."""
    work = run.subjects[row.model].work
    calls_per_s = spread_of(row.modes["resident"].images_per_s).median / row.batch
    tflops = work.flops(row.batch) * calls_per_s / 1e12
    gb_s = work.bytes(row.batch, ELEMENT_BYTES[row.precision]) * calls_per_s / 1e9
    return {"tflops": tflops, "gb_s": gb_s, **peak_shares(tflops, gb_s, sheet, run.best_peak)}


def _ratios(run: GpuRun, row: GpuRow, mode: Mode) -> Spread | None:
    """Images a second over eager FP32's in the same round; None where eager has not as many rounds."""
    for other in run.rows:
        if (other.model, other.batch, other.contender) == (row.model, row.batch, _BASELINE) and mode in other.modes:
            baseline, own = other.modes[mode].images_per_s, row.modes[mode].images_per_s
            return spread_of(pair_ratios(own, baseline)) if len(own) == len(baseline) else None
    return None


def _table(run: GpuRun, title: str) -> Table:
    sheet = _sheet(run)
    side = run.subjects[title].input_side
    table = Table(title=f"{title}, {side} x {side}: median (quartiles) of {run.plan.rounds} rounds")
    table.add_column("batch", justify="right")
    table.add_column("contender")
    on_gpu = run.plan.device == "cuda"
    headings = ["images/s", "ms a call", "x eager FP32", *(["images/s, host"] if on_gpu else []), *_SHARES.values()]
    for heading in headings:
        table.add_column(heading, justify="right")
    rows = [row for row in run.rows if row.model == title]
    notes: dict[str, None] = {}
    previous = rows[0].batch if rows else 0
    for row in rows:
        if row.batch != previous:
            table.add_section()
        previous = row.batch
        who = f"{CONTENDERS[row.contender].title} {row.precision.upper()}"
        if row.status != "measured":
            table.add_row(str(row.batch), who, row.status)
        else:
            table.add_row(str(row.batch), who, *_cells(run, row, sheet, on_gpu=on_gpu))
        if row.reason:
            where = "" if row.status == "not here" else f" at batch {row.batch}"
            notes[f"{who}{where}: {row.status}: {row.reason}"] = None
    table.caption = "\n".join((*notes, *_notes_on_peaks(run)))
    table.caption_justify = "left"
    return table


def _cells(run: GpuRun, row: GpuRow, sheet: SheetPeak | None, *, on_gpu: bool) -> Sequence[str]:
    resident = row.modes["resident"]
    ratios = _ratios(run, row, "resident")
    work = _work(run, row, sheet)
    return (
        f"{spread_of(resident.images_per_s)}",
        f"{resident.latency_ms}",
        "1" if row.contender == _BASELINE else f"{ratios}" if ratios else "?",
        *([f"{spread_of(row.modes['host'].images_per_s).median:.0f}"] if on_gpu else []),
        *("-" if work[name] is None else f"{work[name]:.1%}" for name in _SHARES),
    )


def _notes_on_peaks(run: GpuRun) -> list[str]:
    notes = []
    sheet, measured = _sheet(run), run.best_peak
    if sheet:
        notes.append(f"sheet: {sheet.fp16_tflops:g} TFLOPS, {sheet.memory_gb_s:g} GB/s ({sheet.source})")
    else:
        notes.append(f"no shares of a data sheet: {_why_no_sheet(run)}")
    if measured:
        notes.append(
            f"measured here: {measured.matmul_tflops:.3g} TFLOPS ({measured.matmul} product), "
            f"{measured.copy_gb_s:.0f} GB/s (copy of {measured.copy_mib} MiB, read and written)"
        )
    notes += [f"no measured peak: {failure}" for failure in run.peak_failures]
    return notes


def _sheet(run: GpuRun) -> SheetPeak | None:
    return SHEET_PEAKS.get(run.best_peak.device) if run.best_peak else None


def _why_no_sheet(run: GpuRun) -> str:
    if run.plan.device == "cpu":
        return "a CPU was measured"
    if run.best_peak is None:
        return "the GPU's name is not known, as measuring its peaks failed"
    return f"{run.best_peak.device} is not in benchmarks/gpu/peaks.py"
