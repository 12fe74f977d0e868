"""Results read back, and their tables."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from fuseline.benchmarks.gpu.run.record import Row, RunRecord, StepRecord, read_record
from fuseline.benchmarks.gpu.run.table import as_group, as_markdown, shown
from fuseline.serve.errors import InputError

MACHINE = {
    "cpu": "a CPU",
    "usable_cores": 16,
    "memory_gib": 128,
    "gpu": None,
    "python": "3.12.3",
    "versions": {"torch": "2.11.0"},
    "git_revision": None,
}


def record(*steps: StepRecord, finished: bool = True) -> RunRecord:
    return RunRecord(
        command="run.sh --minutes 10",
        started_utc="2026-11-26T12:00:00+00:00",
        load_average_before=0.1,
        machine=MACHINE,
        gpu={"name": "NVIDIA H100 80GB HBM3", "driver": "580.159.04", "compute_capability": "9.0"},
        bundle={"revision": "abc", "target": "has.txt", "python": "3.12"},
        minutes=10,
        device="cuda",
        steps=list(steps),
        finished=finished,
    )


FASTER = Row(what="batch 8: TensorRT [fp16]", figures={"images/s": 12345.6, "ms": 0.6481, "kept": None})
MISSING = Row(what="batch 8: ONNX | Runtime", status="not here", reason="the installed build\nhas no CUDA")
READY = Row(what="ready", figures={"s": 4, "on a GPU": True})
ENGINES = StepRecord(
    name="engines", title="Engines", status="done", limit_s=160, seconds=43.2, rows=[FASTER, MISSING, READY]
)
CUT = StepRecord(name="cpu", title="CPU", status="out of time", reason="no time of --minutes 10 was left")


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    written = record(ENGINES, CUT)
    written.write(tmp_path / "r.json")
    assert read_record(tmp_path / "r.json") == written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no result of a GPU run"),
        ('{"benchmark": "gpu-run"', "is no result of a GPU run"),
        ('{"benchmark": "gpu", "rows": []}', "is no result of a GPU run: benchmark"),
        ("[]", "is no result of a GPU run"),
    ],
)
def test_another_file_is_refused_with_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_record(tmp_path / "r.json")
    with pytest.raises(InputError, match="nothing.json can't be read"):
        read_record(tmp_path / "nothing.json")


def test_numbers_that_json_has_not_are_kept_as_text(tmp_path: Path) -> None:
    row = Row(what="x", figures={"y": float("nan"), "z": 1.5}, details={"all": [[float("inf")], (float("-inf"), 2)]})
    assert row.figures == {"y": "nan", "z": 1.5}
    assert row.details == {"all": [["inf"], ["-inf", 2]]}
    written = record(StepRecord(name="a", title="a", rows=[row]))
    written.write(tmp_path / "r.json")
    assert read_record(tmp_path / "r.json") == written


def test_the_page_has_a_table_for_each_kind_of_figure_and_says_what_is_missing() -> None:
    page = as_markdown(record(ENGINES, CUT))
    assert page.splitlines() == [
        "**Engines: done, 43 of 160 s**",
        "",
        "| what | images/s | ms | kept | note |",
        "|---|---|---|---|---|",
        "| batch 8: TensorRT [fp16] | 12346 | 0.648 |  |  |",
        "| batch 8: ONNX \\| Runtime |  |  |  | not here: the installed build has no CUDA |",
        "",
        "| what | s | on a GPU | note |",
        "|---|---|---|---|",
        "| ready | 4 | yes |  |",
        "",
        "**CPU: out of time (no time of --minutes 10 was left)**",
        "",
        "- a CPU, 16 cores, 128 GiB; Python 3.12.3; torch 2.11.0; git unknown",
        "- NVIDIA H100 80GB HBM3, driver 580.159.04, compute capability 9.0",
        "- bundle of abc for has.txt",
        "- run.sh --minutes 10: 0.7 of 10 minutes, begun 2026-11-26T12:00:00+00:00",
    ]


def test_the_terminal_shows_the_same_brackets_included() -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(as_group(record(ENGINES, CUT, finished=False)))
    text = console.export_text()
    for words in ("TensorRT [fp16]", "12346", "no CUDA", "CPU: out of time", "the run was cut off"):
        assert words in text


@pytest.mark.parametrize(
    ("status", "row", "code"),
    [
        ("done", "measured", 0),
        ("not here", "not here", 0),
        ("out of time", "dropped", 0),
        ("done", "skipped", 0),
        ("done", "out of memory", 0),
        ("done", "failed", 1),
        ("done", "wrong answer", 1),
        ("failed", "measured", 1),
    ],
)
def test_the_exit_code_tells_of_what_is_wrong_and_of_nothing_else(status: str, row: str, code: int) -> None:
    step = StepRecord(name="a", title="a", status=status, rows=[Row(what="x", status=row)])
    assert record(step).exit_code == code
    assert record(step, finished=False).exit_code == 1


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (None, ""),
        (True, "yes"),
        (False, "no"),
        (0.00012345, "0.000123"),
        (99.96, "100"),
        (1234.5, "1234"),
        (7, "7"),
        ("a", "a"),
    ],
)
def test_figures_are_shown_to_three_digits(figure: object, text: str) -> None:
    assert shown(figure) == text
