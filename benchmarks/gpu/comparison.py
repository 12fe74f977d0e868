"""`fuseline bench gpu`: PyTorch, ONNX Runtime and TensorRT on one GPU, turn by turn in one run.

A case is one network at one batch size. Every contender is got ready for it in a process of its own and held against
eager PyTorch FP32 on the CPU; then they are timed round after round, every second round backwards. Cases come from the
smallest batch to the largest, or the other way round, and a run whose time is up leaves the last out and says so. A
contender that is not here, runs out of memory, fails or answers wrongly is a row that says so, and the run goes on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from fuseline.benchmarks.gpu.contender import CONTENDERS, Answers, Device, Mode, Precision, modes_on
from fuseline.benchmarks.gpu.device import gpu_facts
from fuseline.benchmarks.gpu.peaks import MeasuredPeak
from fuseline.benchmarks.gpu.start import start_contender
from fuseline.benchmarks.gpu.subject import GpuSubject, check_model, open_gpu_subject
from fuseline.benchmarks.harness.answers import check_logits
from fuseline.benchmarks.harness.stats import Spread, spread_of
from fuseline.benchmarks.harness.worker_process import WorkerProcess, WorkFailedError
from fuseline.serve.errors import BackendUnavailableError, InputError, VerificationError

Status = Literal["measured", "not here", "out of memory", "failed", "wrong answer", "dropped"]

PEAK_BY = "eager"
"""Which contender's process measures the machine's peaks."""
_PEAK_SECONDS = 1.0
_ANSWER_TIMEOUT_S = 180.0
"""Limit of what takes a second or two on a machine that is well: a start, a stretch, a release."""
_CASE_MARGIN = 1.3
"""How much longer a case may take than the longest so far of its network: larger batches take longer to get ready."""


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """What is asked for."""

    models: tuple[str, ...] = ("resnet18", "resnet50")
    """Names or checkpoints."""
    batches: tuple[int, ...] = (1, 8, 32, 128, 256)
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    device: Device = "cuda"
    rounds: int = 5
    seconds: float = 0.3
    """Length of each stretch."""
    minutes: float = 9.0
    """Time for the whole run."""
    input_side: int | None = None
    """Height and width of the pictures; None: each network's own."""
    compile_mode: str = "reduce-overhead"
    engine_for: str | None = None
    """What TensorRT builds for, see `available_builder`; None: the GPU at hand."""
    largest_first: bool = False
    """Whether the time goes to the largest batches, and the smallest are left out."""


@dataclass(slots=True)
class ModeFigures:
    """One contender in one mode. Lists have a value for each round."""

    images_per_s: list[float] = field(default_factory=list)
    call_s: list[float] = field(default_factory=list)
    """Duration of every call of every round."""

    @property
    def latency_ms(self) -> Spread:
        """Over every call of every round."""
        return spread_of([1e3 * seconds for seconds in self.call_s])


@dataclass(slots=True)
class GpuRow:
    """One contender on one case."""

    model: str
    batch: int
    contender: str
    precision: Precision
    status: Status = "measured"
    reason: str | None = None
    """Why there are no figures, or fewer."""
    details: dict[str, Any] = field(default_factory=dict)
    modes: dict[Mode, ModeFigures] = field(default_factory=dict)

    def give_up(self, status: Status, reason: str) -> None:
        """No figure of this row counts."""
        self.status, self.reason = status, reason
        self.modes.clear()


@dataclass(slots=True)
class GpuRun:
    """What one run found."""

    plan: GpuPlan
    gpu_before: dict[str, Any] | None
    subjects: dict[str, GpuSubject] = field(default_factory=dict)
    """Subjects by title."""
    rows: list[GpuRow] = field(default_factory=list)
    peaks: list[MeasuredPeak] = field(default_factory=list)
    """Peaks measured at the start and at the end."""
    peak_failures: list[str] = field(default_factory=list)
    gpu_after: dict[str, Any] | None = None

    @property
    def best_peak(self) -> MeasuredPeak | None:
        """The best of both times, which shares are taken of; None if neither was measured."""
        if not self.peaks:
            return None
        return replace(
            self.peaks[0],
            matmul_tflops=max(peak.matmul_tflops for peak in self.peaks),
            copy_gb_s=max(peak.copy_gb_s for peak in self.peaks),
        )

    @property
    def answers_right(self) -> bool:
        """Whether no contender answered wrongly."""
        return all(row.status != "wrong answer" for row in self.rows)


def run_gpu(
    plan: GpuPlan,
    say: Callable[[str], None] = lambda _: None,
    on_case: Callable[["GpuRun", Sequence[GpuRow]], None] = lambda *_: None,
) -> GpuRun:
    """Measure `plan`, within its minutes and one round more. `on_case` is called with each case's rows when it ends.

    Raises:
        BackendUnavailableError: a GPU is asked for and there is none.
        InputError: a model is neither a name nor a checkpoint, has another's name, or can't be exported.
    """
    _check_models(plan.models)
    if plan.device == "cuda":
        _check_gpu()
    run = GpuRun(plan, gpu_facts() if plan.device == "cuda" else None)
    deadline = monotonic() + 60 * plan.minutes
    with ExitStack() as stack:
        # First, so that the runtimes are imported while the networks are exported.
        bench = stack.enter_context(_Bench(run, deadline, say))
        inputs: dict[str, tuple[NDArray[np.uint8], NDArray[np.float32]]] = {}
        for model in plan.models:
            say(f"exporting {model}")
            subject, pixels, expected = stack.enter_context(
                open_gpu_subject(model, input_side=plan.input_side, rows=max(plan.batches))
            )
            run.subjects[subject.title] = subject
            inputs[subject.title] = pixels, expected
        bench.measure_peak()
        longest_s = dict.fromkeys(inputs, 0.0)
        largest = max(plan.batches)
        for batch in sorted(plan.batches, reverse=plan.largest_first):
            for title, (pixels, expected) in inputs.items():
                # Of a smaller batch than those so far, time for its calls at least.
                needed_s = longest_s[title] * (batch / largest if plan.largest_first else _CASE_MARGIN)
                started = monotonic()
                if started + needed_s > deadline:
                    rows = bench.dropped(title, batch, needed_s)
                else:
                    rows = bench.measure(title, pixels[:batch], expected[:batch])
                    longest_s[title] = max(longest_s[title], monotonic() - started)
                run.rows += rows
                on_case(run, rows)
        bench.measure_peak()
    run.gpu_after = gpu_facts() if plan.device == "cuda" else None
    return run


def _check_models(models: Sequence[str]) -> None:
    for model in models:
        check_model(model)
    titles = [Path(model).stem for model in models]
    if len(set(titles)) < len(titles):
        raise InputError(f"--model: two networks have one name among {', '.join(titles)}; rows could not be told apart")


def _check_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise BackendUnavailableError(
            f"PyTorch {torch.__version__} finds no GPU here; --device cpu runs the contenders that a CPU can"
        )


class _Bench:
    """The contenders' processes, and what is done with them."""

    def __init__(self, run: GpuRun, deadline: float, say: Callable[[str], None]) -> None:
        self._run = run
        self._plan = run.plan
        self._deadline = deadline
        self._budget = f"--minutes {run.plan.minutes:.3g}"
        self._say = say
        self._workers = {name: self._started(name) for name in dict.fromkeys((PEAK_BY, *run.plan.contenders))}
        self._ready: set[str] = set()
        self._not_here: dict[str, WorkFailedError] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for name in list(self._workers):
            self._end(name)

    def measure_peak(self) -> None:
        """Add one measured peak to the run, or why there is none."""
        self._say("measuring the machine's peaks")
        try:
            peak = self._worker(PEAK_BY).ask("peak", _PEAK_SECONDS, timeout_s=_ANSWER_TIMEOUT_S)
        except WorkFailedError as failure:
            self._run.peak_failures.append(str(failure))
            self._end(PEAK_BY)
        else:
            self._run.peaks.append(peak)

    def dropped(self, title: str, batch: int, needed_s: float) -> list[GpuRow]:
        """Rows of a case for which there is no time."""
        rows = self._rows(title, batch)
        for row in rows:
            row.give_up("dropped", f"{self._budget}: {self._left_s():.0f} s were left and it may take {needed_s:.0f} s")
        return rows

    def measure(self, title: str, pixels: NDArray[np.uint8], expected: NDArray[np.float32]) -> list[GpuRow]:
        """Rows of one case, in the order of the plan's contenders."""
        rows = self._rows(title, len(pixels))
        for row in rows:
            self._say(f"{title}, batch {row.batch}: getting {row.contender} ready")
            with self._failures_of(row):
                self._prepare(row, pixels, expected)
        for number in range(self._plan.rounds):
            running = [row for row in rows if row.status == "measured"]
            if number and not self._left_s():
                for row in running:
                    row.reason = f"{self._budget}: {number} of {self._plan.rounds} rounds"
                break
            for row in running if number % 2 == 0 else running[::-1]:
                self._say(f"{title}, batch {row.batch}, round {number + 1} of {self._plan.rounds}: {row.contender}")
                with self._failures_of(row):
                    self._round(row)
        for row in rows:
            self._release(row.contender)
        return rows

    def _rows(self, title: str, batch: int) -> list[GpuRow]:
        device = self._plan.device
        return [GpuRow(title, batch, name, CONTENDERS[name].precision_on(device)) for name in self._plan.contenders]

    def _prepare(self, row: GpuRow, pixels: NDArray[np.uint8], expected: NDArray[np.float32]) -> None:
        left_s = self._left_s()
        answers: Answers | None = None
        if left_s:
            worker, subject = self._worker(row.contender), self._run.subjects[row.model]
            try:
                answers = worker.ask("prepare", subject, pixels, self._plan.seconds, timeout_s=left_s)
            except WorkFailedError as failure:
                if failure.kind != "too slow":
                    raise
                self._end(row.contender)
        if answers is None:
            row.give_up("dropped", f"{self._budget}: it was not ready in the {left_s:.0f} s left")
            return
        row.details = answers.details
        for mode, logits in answers.logits.items():
            who = f"{row.contender} at batch {row.batch} ({mode})"
            # TF32 keeps as many bits of a factor as FP16.
            check_logits(who, "fp32" if row.precision == "fp32" else "fp16", logits, expected)

    def _round(self, row: GpuRow) -> None:
        for mode in modes_on(self._plan.device):
            calls = self._workers[row.contender].ask(
                "measure", mode, self._plan.seconds, timeout_s=_ANSWER_TIMEOUT_S + self._plan.seconds
            )
            figures = row.modes.setdefault(mode, ModeFigures())
            figures.call_s += calls
            figures.images_per_s.append(row.batch * len(calls) / sum(calls))

    def _release(self, name: str) -> None:
        if name in self._ready:
            try:
                self._workers[name].ask("release", timeout_s=_ANSWER_TIMEOUT_S)
            except WorkFailedError as failure:
                self._say(f"{name} could not give its memory back and is started anew: {failure}")
                self._end(name)

    @contextmanager
    def _failures_of(self, row: GpuRow) -> Iterator[None]:
        """Turn a contender's failure into its row, and end its process."""
        try:
            yield
        except WorkFailedError as failure:
            self._end(row.contender)
            if failure.kind == "not here":
                self._not_here[row.contender] = failure
            row.give_up("failed" if failure.kind == "too slow" else failure.kind, str(failure))
        except VerificationError as error:
            row.give_up("wrong answer", str(error))

    def _worker(self, name: str) -> WorkerProcess:
        """The process of `name`, started and ready. One whose runtime is not here is not tried again."""
        if name in self._not_here:
            raise self._not_here[name]
        if name not in self._workers:
            self._workers[name] = self._started(name)
        if name not in self._ready:
            self._workers[name].ready(_ANSWER_TIMEOUT_S)
            self._ready.add(name)
        return self._workers[name]

    def _started(self, name: str) -> WorkerProcess:
        return WorkerProcess(start_contender, name, self._plan.device, self._plan.compile_mode, self._plan.engine_for)

    def _end(self, name: str) -> None:
        self._ready.discard(name)
        if (worker := self._workers.pop(name, None)) is not None:
            worker.close()

    def _left_s(self) -> float:
        return max(0.0, self._deadline - monotonic())
