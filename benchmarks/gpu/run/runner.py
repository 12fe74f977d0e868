"""A run on a GPU, step by step, each within its share of the time and its result written the moment it is known."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuseline.benchmarks.gpu.device import gpu_facts
from fuseline.benchmarks.gpu.run.job import BUNDLE_VARIABLE, TRAINED, Job, RunPlan
from fuseline.benchmarks.gpu.run.record import Row, RunRecord, StepRecord
from fuseline.benchmarks.gpu.run.schedule import limit_s
from fuseline.benchmarks.gpu.run.step_process import run_step
from fuseline.benchmarks.harness.results import conditions
from fuseline.serve.errors import InputError

RESULT, LOG, TABLE = "gpu-run.json", "gpu-run.log", "gpu-run.md"
"""The files in the folder that a run writes to."""
MAX_LOG_BYTES = 12 * 2**20
_LAST_WORDS_S = 5.0
"""Part of the minutes that is kept for what comes after the last step."""
_CHECKOUT = Path(__file__).resolve().parents[3]
"""The checkout, where this runs in one."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what it is called, its share of the time, and the module whose `run` does it."""

    title: str
    weight: float
    module: str


STEPS: Mapping[str, Step] = {
    "machine": Step("The machine: doctor, nvidia-smi, versions", 15, "fuseline.benchmarks.gpu.run.steps.machine"),
    "probe": Step("TensorRT for RTX on this compute capability", 45, "fuseline.benchmarks.gpu.run.steps.probe"),
    "package": Step(
        "A package with FP16, its engine, and PyTorch's answers", 80, "fuseline.benchmarks.gpu.run.steps.package"
    ),
    "engines": Step("Engines beside PyTorch", 150, "fuseline.benchmarks.gpu.run.steps.engines"),
    "serving": Step("Served over gRPC, beside the bare backend", 150, "fuseline.benchmarks.gpu.run.steps.serving"),
    "tests": Step("The tests marked gpu", 75, "fuseline.benchmarks.gpu.run.steps.gpu_tests"),
    "cpu": Step(
        "CPU backends: one instance and several, and lanes of a server", 85, "fuseline.benchmarks.gpu.run.steps.cpu"
    ),
}
"""The steps in their order. Weights are seconds of a run of ten minutes."""


def run_all(
    plan: RunPlan,
    command: str,
    say: Callable[[str], None] = lambda _: None,
    steps: Mapping[str, Step] = STEPS,
) -> RunRecord:
    """Run the steps of `plan`; `gpu-run.json` in its folder is whole and true at any time, so a run may be cut off.

    Raises:
        InputError: the folder can't be written to.
    """
    deadline = time.monotonic() + 60 * plan.minutes - _LAST_WORDS_S
    chosen = {name: step for name, step in steps.items() if not plan.steps or name in plan.steps}
    record = RunRecord(
        **conditions(command).facts,
        gpu=gpu_facts() if plan.device == "cuda" else None,
        bundle=_bundle(),
        minutes=plan.minutes,
        device=plan.device,
        steps=[StepRecord(name=name, title=step.title) for name, step in chosen.items()],
    )
    result, log = plan.out / RESULT, plan.out / LOG
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        record.write(result)
    except OSError as error:
        raise InputError(f"--out {plan.out} can't be written to: {error.strerror}") from error
    with tempfile.TemporaryDirectory(prefix="fuseline-gpu-run-") as work:
        found: dict[str, Any] = {}
        checkout, data = _beside_the_code()
        left = list(chosen.values())
        for entry in record.steps:
            limit = limit_s([step.weight for step in left], deadline - time.monotonic())
            job = Job(plan, Path(work), checkout, data, time.monotonic() + limit, found)
            _run_entry(entry, left.pop(0).module, job, limit, record, say)
            _shorten(log)
    record.finished = True
    record.write(result)
    return record


def _run_entry(
    entry: StepRecord, module: str, job: Job, limit: float, record: RunRecord, say: Callable[[str], None]
) -> None:
    result, log = job.plan.out / RESULT, job.plan.out / LOG
    if not limit:
        entry.status, entry.reason = "out of time", f"no time of --minutes {job.plan.minutes:g} was left"
        record.write(result)
        return
    say(f"{entry.title} (at most {limit:.0f} s)")
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"\n===== {entry.name}: {entry.title}\n")
    entry.status, entry.limit_s = "running", round(limit, 1)
    record.write(result)
    started = time.monotonic()

    def on_row(row: Row) -> None:
        entry.rows.append(row)
        record.write(result)
        say(f"  {row.what}: {row.status}{f': {row.reason}' if row.reason and row.status != 'measured' else ''}")

    try:
        entry.status, entry.reason = run_step(module, job, log, on_row)
    except BaseException:
        # Ctrl-C, SIGTERM: what was found is kept, and it is said that this is not all.
        entry.status, entry.reason = "interrupted", "the run was ended from outside"
        raise
    finally:
        entry.seconds = round(time.monotonic() - started, 1)
        record.write(result)
    if entry.reason:
        say(f"  {entry.status}: {entry.reason}")


def _bundle() -> dict[str, Any] | None:
    """What the bundle says of itself."""
    folder = os.environ.get(BUNDLE_VARIABLE)
    if folder is None:
        return None
    try:
        manifest = json.loads((Path(folder) / "bundle.json").read_text(encoding="utf-8"))
        return {name: manifest[name] for name in ("revision", "target", "python")}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{BUNDLE_VARIABLE}={folder} is no folder of an installed bundle ({error}); run its install.sh again"
        ) from error


def _beside_the_code() -> tuple[Path, Path | None]:
    """Return the folders of the tests and of the trained network with its pictures, if they are here."""
    folder = os.environ.get(BUNDLE_VARIABLE)
    checkout = _CHECKOUT if folder is None else Path(folder) / "checkout"
    data = _CHECKOUT.parent / "shared" / "data" if folder is None else checkout / "data"
    return checkout, data if (data / TRAINED).is_file() else None


def _shorten(log: Path) -> None:
    """Keep the beginning and the end of a log that grows beyond what comes back from a machine."""
    size = log.stat().st_size
    if size <= MAX_LOG_BYTES:
        return
    half = MAX_LOG_BYTES // 2
    with log.open("rb") as stream:
        head = stream.read(half)
        stream.seek(size - half)
        tail = stream.read()
    log.write_bytes(head + b"\n===== the middle is left out\n" + tail)
