"""The GPU benchmark on a CPU: real networks, real contenders, and contenders that go wrong on purpose."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import fuseline.benchmarks.gpu.comparison
from fuseline.benchmarks.gpu.comparison import PEAK_BY, GpuPlan, GpuRow, GpuRun, run_gpu
from fuseline.benchmarks.gpu.contender import CONTENDERS
from fuseline.benchmarks.gpu.peaks import SHEET_PEAKS, MeasuredPeak
from fuseline.benchmarks.gpu.report import as_json, as_tables
from fuseline.benchmarks.gpu.subject import GpuSubject, open_gpu_subject
from fuseline.serve.errors import BackendUnavailableError, InputError
from tests.benchmarks.gpu.faults import FAULTS, start_faulty
from tests.commands import exit_code
from tests.fakes.clock import Clock

Opened = tuple[GpuSubject, NDArray[np.uint8], NDArray[np.float32]]


@pytest.fixture(scope="module")
def exported() -> Iterator[Opened]:
    """A ResNet-8 and 32 pictures, exported once for all runs."""
    with open_gpu_subject("resnet8", input_side=None, rows=32) as opened:
        yield opened


@pytest.fixture(scope="module")
def small(exported: Opened) -> Iterator[None]:
    """Let runs take `exported` for `resnet8`."""
    subject, pixels, expected = exported

    def open_exported(model: str, *, input_side: int | None, rows: int) -> AbstractContextManager[Opened]:
        if model != "resnet8":
            return open_gpu_subject(model, input_side=input_side, rows=rows)
        return nullcontext((subject, pixels[:rows], expected[:rows]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuseline.benchmarks.gpu.comparison, "open_gpu_subject", open_exported)
        yield


@pytest.mark.slow
def test_resnet18_on_a_cpu_through_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    written = tmp_path / "gpu.json"
    contenders = ",".join(name for name in CONTENDERS if name != "compiled")
    flags = ["--device", "cpu", "--model", "resnet18", "--input-side", 64, "--batch", "1,2", "--contender", contenders]
    assert exit_code("fuseline", "bench", "gpu", *flags, "--rounds", 2, "--seconds", 0.05, "--json", written) == 0

    out = capsys.readouterr().out
    assert "resnet18, 64 x 64: median (quartiles) of 2 rounds" in out
    assert "TensorRT FP16: not here: it needs a GPU" in out
    found = json.loads(written.read_text())
    assert str(tmp_path) not in written.read_text()
    assert found["benchmark"] == "gpu"
    assert found["machine"]["versions"]["onnxruntime"]
    assert [(row["contender"], row["batch"]) for row in found["rows"] if row["status"] == "measured"] == [
        ("eager", 1),
        ("onnxruntime", 1),
        ("eager", 2),
        ("onnxruntime", 2),
    ]
    assert {row["status"] for row in found["rows"]} == {"measured", "not here"}
    assert len(found["peaks"]["measured"]) == 2
    row = found["rows"][4]
    assert row["contender"] == "onnxruntime"
    assert len(row["resident"]["images_per_s"]) == 2
    calls_per_s = row["resident"]["images_per_s_spread"]["median"] / row["batch"]
    # He et al. 2015, table 1: 1.8e9 multiply-adds at 224 x 224; a convolution's go with the area.
    assert row["work"]["tflops"] * 1e12 == pytest.approx(2 * 1.8e9 * (64 / 224) ** 2 * calls_per_s, rel=0.02)
    assert row["work"]["of_measured_matmul"] > 0
    assert row["work"]["of_sheet_fp16_peak"] is None


@pytest.mark.slow
def test_torch_compile_on_a_cpu(small: None) -> None:
    run = run_gpu(GpuPlan(models=("resnet8",), batches=(1, 2), device="cpu", seconds=0.05, contenders=("compiled",)))
    assert [row.status for row in run.rows] == ["measured", "measured"], [row.reason for row in run.rows]


@pytest.fixture(scope="module")
def faulty_run(small: None) -> GpuRun:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuseline.benchmarks.gpu.comparison, "start_contender", start_faulty)
        return run_gpu(GpuPlan(models=("resnet8",), batches=(1, 2), device="cpu", rounds=2, seconds=0.01))


def test_a_contender_that_goes_wrong_is_a_row_and_the_run_goes_on(faulty_run: GpuRun) -> None:
    statuses = {(row.contender, row.batch): row.status for row in faulty_run.rows}
    for batch in (1, 2):
        assert statuses["eager", batch] == statuses["onnxruntime", batch] == "measured"
        assert statuses["eager-tf32", batch] == statuses["graphed", batch] == "failed"
        assert statuses["compiled", batch] == "wrong answer"
        assert statuses["tensorrt", batch] == "not here"
    assert (statuses["eager-fp16", 1], statuses["eager-fp16", 2]) == ("measured", "out of memory")


def test_rows_without_figures_say_why_and_have_none(faulty_run: GpuRun) -> None:
    rows = {row.contender: row for row in faulty_run.rows if row.batch == 2}
    assert "SIGKILL" in (rows["eager-tf32"].reason or "")
    assert "SIGKILL" in (rows["graphed"].reason or "")
    assert "out of memory" in (rows["eager-fp16"].reason or "")
    assert "gives other answers than expected" in (rows["compiled"].reason or "")
    assert rows["tensorrt"].reason == "it is not installed: pip install it"
    assert all(not rows[name].modes for name in FAULTS)
    assert "/home/me" not in json.dumps(as_json(faulty_run))


def test_a_wrong_answer_ends_with_exit_code_1(
    faulty_run: GpuRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert not faulty_run.answers_right
    monkeypatch.setattr(fuseline.benchmarks.gpu.comparison, "run_gpu", lambda *_: faulty_run)
    assert exit_code("fuseline", "bench", "gpu", "--device", "cpu", "--json", tmp_path / "gpu.json") == 1
    assert "wrong answer" in capsys.readouterr().out
    assert (tmp_path / "gpu.json").is_file()


def test_contenders_take_turns_every_second_round_backwards(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuseline.benchmarks.gpu.comparison, "start_contender", start_faulty)
    said: list[str] = []
    contenders = ("onnxruntime", "eager-fp16", "tensorrt")
    plan = GpuPlan(models=("resnet8",), batches=(1,), device="cpu", rounds=2, seconds=0.01, contenders=contenders)
    run = run_gpu(plan, said.append)
    rounds = [line.rpartition(" ")[2] for line in said if ", round " in line]
    assert rounds == ["onnxruntime", "eager-fp16", "eager-fp16", "onnxruntime"]
    assert [len(row.modes["resident"].images_per_s) for row in run.rows if row.modes] == [2, 2]
    # Even if the contender that measures them is not asked for.
    assert PEAK_BY not in contenders
    assert len(run.peaks) == 2
    assert all(peak.matmul_tflops > 0 and peak.copy_gb_s > 0 for peak in run.peaks)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(0.0)
    # Peaks are no part of what is timed here, and PyTorch takes seconds to import.
    monkeypatch.setattr(fuseline.benchmarks.gpu.comparison, "PEAK_BY", "onnxruntime")
    monkeypatch.setattr(fuseline.benchmarks.gpu.comparison._Bench, "measure_peak", lambda _: None)
    monkeypatch.setattr(fuseline.benchmarks.gpu.comparison, "monotonic", clock)
    return clock


def plan_for(minutes: float, **changes: object) -> GpuPlan:
    return GpuPlan(
        **(
            {
                "models": ("resnet8",),
                "batches": (32, 1, 8),
                "device": "cpu",
                "contenders": ("onnxruntime",),
                "rounds": 3,
                "seconds": 0.01,
                "minutes": minutes,
            }
            | changes
        )
    )


def test_the_largest_batches_are_left_out_where_the_time_does_not_suffice(
    small: None, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = fuseline.benchmarks.gpu.comparison._Bench.measure

    def measure(*arguments: object) -> list[GpuRow]:
        clock.now += 60
        return measured(*arguments)

    monkeypatch.setattr(fuseline.benchmarks.gpu.comparison._Bench, "measure", measure)
    run = run_gpu(plan_for(minutes=3))
    # One minute each, and what may take longer doesn't fit into the third.
    assert [(row.batch, row.status) for row in run.rows] == [(1, "measured"), (8, "measured"), (32, "dropped")]
    assert run.rows[-1].reason == "--minutes 3: 60 s were left and it may take 78 s"


def test_largest_first_the_smallest_batches_are_left_out(
    small: None, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = fuseline.benchmarks.gpu.comparison._Bench.measure
    told: list[tuple[int, str]] = []

    def measure(*arguments: object) -> list[GpuRow]:
        clock.now += 60
        return measured(*arguments)

    monkeypatch.setattr(fuseline.benchmarks.gpu.comparison._Bench, "measure", measure)
    # One minute each. By its size the second needs a quarter of one, the third two seconds, and half a one is left.
    run = run_gpu(
        replace(plan_for(minutes=2.01), largest_first=True),
        on_case=lambda so_far, rows: told.extend((row.batch, row.status) for row in rows),
    )
    assert [(row.batch, row.status) for row in run.rows] == [(32, "measured"), (8, "measured"), (1, "dropped")]
    assert run.rows[-1].reason == "--minutes 2.01: 1 s were left and it may take 2 s"
    # Each as soon as it is known.
    assert told == [(row.batch, row.status) for row in run.rows]


def test_time_that_runs_out_within_a_case_ends_it_after_a_whole_round(
    small: None, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_round = fuseline.benchmarks.gpu.comparison._Bench._round

    def timed_round(*arguments: object) -> None:
        one_round(*arguments)
        clock.now += 50

    monkeypatch.setattr(fuseline.benchmarks.gpu.comparison._Bench, "_round", timed_round)
    (row,) = run_gpu(plan_for(minutes=1, batches=(1,))).rows
    assert row.status == "measured"
    assert len(row.modes["resident"].images_per_s) == 2
    assert row.reason == "--minutes 1: 2 of 3 rounds"


def test_what_is_not_ready_in_time_is_left_out(small: None, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuseline.benchmarks.gpu.comparison._Bench, "_left_s", lambda _: 0.0)
    (row,) = run_gpu(plan_for(minutes=1, batches=(1,))).rows
    assert (row.status, row.reason) == ("dropped", "--minutes 1: it was not ready in the 0 s left")


def as_if_on(name: str, faulty_run: GpuRun) -> GpuRun:
    """What eager PyTorch measured here, with the peaks of a GPU called `name`."""
    row = next(row for row in faulty_run.rows if row.contender == "eager")
    on_gpu = replace(row, modes={"resident": row.modes["resident"], "host": row.modes["resident"]})
    peaks = [MeasuredPeak(name, 700.0, "a product", 2000.0, 1024), MeasuredPeak(name, 600.0, "a product", 3000.0, 1024)]
    return GpuRun(GpuPlan(), None, faulty_run.subjects, [on_gpu], peaks)


def test_shares_are_of_the_data_sheet_of_that_very_gpu_and_of_what_was_measured(faulty_run: GpuRun) -> None:
    run = as_if_on("NVIDIA H100 80GB HBM3", faulty_run)
    found = as_json(run)
    work = found["rows"][0]["work"]
    assert found["peaks"]["sheet"]["source"].startswith("NVIDIA H100")
    assert work["of_sheet_fp16_peak"] == pytest.approx(work["tflops"] / 989.5)
    assert work["of_sheet_bandwidth"] == pytest.approx(work["gb_s"] / 3350)
    assert work["of_measured_matmul"] == pytest.approx(work["tflops"] / 700)
    assert work["of_measured_copy"] == pytest.approx(work["gb_s"] / 3000)
    (table,) = as_tables(run)
    assert "989.5 TFLOPS" in str(table.caption)
    assert "images/s, host" in [column.header for column in table.columns]


def test_a_gpu_without_a_data_sheet_has_no_share_of_it_and_that_is_said(faulty_run: GpuRun) -> None:
    run = as_if_on("NVIDIA H100 80GB HBM3 MIG 1g.10gb", faulty_run)
    found = as_json(run)
    assert found["peaks"]["sheet"] is None
    assert found["rows"][0]["work"]["of_sheet_fp16_peak"] is None
    assert found["rows"][0]["work"]["of_measured_matmul"] > 0
    missing = "MIG 1g.10gb is not in benchmarks/gpu/peaks.py"
    assert missing in found["peaks"]["sheet_missing"]
    assert missing in str(as_tables(run)[0].caption)


def test_every_data_sheet_figure_has_its_source() -> None:
    for name, peak in SHEET_PEAKS.items():
        assert peak.source.startswith("NVIDIA "), name
        assert 50 < peak.fp16_tflops < 5000, name
        assert 200 < peak.memory_gb_s < 10000, name


def test_without_a_gpu_cuda_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match="--device cpu"):
        run_gpu(GpuPlan())


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (("resnet18", "resnet19"), "resnet19: neither a checkpoint nor one of"),
        (("resnet18", "resnet18"), "two networks have one name among resnet18, resnet18"),
    ],
)
def test_models_are_refused_before_anything_starts(
    models: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuseline.benchmarks.gpu.comparison, "WorkerProcess", lambda *_: pytest.fail("it was started"))
    with pytest.raises(InputError, match=message):
        run_gpu(GpuPlan(models=models, device="cpu"))


BAD_INPUT = [
    (["--batch", "0"], "--batch '0'"),
    (["--contender", "eager,abacus"], "--contender eager,abacus: abacus is none of eager, "),
    (["--device", "tpu"], "--device tpu: tpu is none of cuda, cpu"),
    (["--compile-mode", "fast"], "--compile-mode fast: fast is none of reduce-overhead"),
    (["--minutes", "0"], "minutes"),
    (["--model", "resnet19", "--device", "cpu"], "--model resnet19"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_INPUT, ids=[" ".join(flags) for flags, _ in BAD_INPUT])
def test_bad_input_is_told_with_exit_code_2(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code("fuseline", "bench", "gpu", *flags) == 2
    assert message in capsys.readouterr().err
