"""A run whose steps go wrong on purpose, in real processes."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from fuseline.benchmarks.gpu.run import runner
from fuseline.benchmarks.gpu.run.job import Job, RunPlan
from fuseline.benchmarks.gpu.run.record import Row, RunRecord, read_record
from fuseline.benchmarks.gpu.run.runner import STEPS, Step, run_all
from fuseline.benchmarks.gpu.run.step_process import run_step
from fuseline.serve.errors import InputError
from tests.serve.processes import lives

SCRIPTED = "tests.benchmarks.gpu.run.scripted_steps"


def scripted_run(monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> RunRecord:
    """A run of a step for each of `words`."""
    real = runner.run_step

    def with_words(module: str, job: Job, *arguments: Any) -> Any:
        job.found.setdefault("script", list(words))
        return real(module, job, *arguments)

    monkeypatch.setattr(runner, "run_step", with_words)
    steps = {f"step{number}": Step(f"to go {word}", 1, SCRIPTED) for number, word in enumerate(words)}
    return run_all(RunPlan(out, minutes=5, device="cpu"), "run.sh", steps=steps)


def test_a_step_that_goes_wrong_says_so_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = scripted_run(monkeypatch, tmp_path, "wrong", "dead", "not here", "unavailable", "well")
    assert [(step.status, step.reason) for step in record.steps] == [
        ("failed", "ValueError: in net.py"),
        ("failed", "its process died by SIGSEGV; the log has what it said"),
        ("not here", "there is no abacus here"),
        ("not here", "it is not installed: pip install it"),
        ("done", None),
    ]
    # What a step had found before is kept, and passed on.
    assert [len(step.rows) for step in record.steps] == [1, 1, 0, 0, 1]
    assert record.finished
    assert record.exit_code == 1
    assert read_record(tmp_path / "gpu-run.json") == record
    log = (tmp_path / "gpu-run.log").read_text()
    assert "===== step0: to go wrong\ngoing wrong\n" in log
    assert "Traceback" in log
    assert str(tmp_path) not in (tmp_path / "gpu-run.json").read_text()


def test_what_is_not_here_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert scripted_run(monkeypatch, tmp_path, "not here", "well").exit_code == 0


def test_a_step_that_hangs_is_ended_in_time_with_all_that_it_started(tmp_path: Path) -> None:
    rows: list[Row] = []
    pid_file = tmp_path / "pid"
    found = {"script": ["hang", "well"], "pid_file": str(pid_file)}
    job = Job(RunPlan(tmp_path), tmp_path, tmp_path, None, time.monotonic() + 600, found)

    def on_row(row: Row) -> None:
        rows.append(row)
        # Its time passes at once when it has started its child.
        if row.what == "started a child":
            object.__setattr__(job, "deadline", time.monotonic() - 60)

    status, reason = run_step(SCRIPTED, job, tmp_path / "log", on_row)
    assert status == "out of time"
    assert "what it had found is kept" in (reason or "")
    assert [row.what for row in rows] == ["before it goes hang", "started a child"]
    assert job.found["script"] == ["well"]
    assert not lives(int(pid_file.read_text()))


def test_ctrl_c_keeps_what_was_found_and_ends_what_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    def interrupted(text: str) -> None:
        if "started a child" in text:
            raise KeyboardInterrupt

    real = runner.run_step

    def with_words(module: str, job: Job, *arguments: Any) -> Any:
        job.found.update({"script": ["hang"], "pid_file": str(pid_file)})
        return real(module, job, *arguments)

    monkeypatch.setattr(runner, "run_step", with_words)
    steps = {"step": Step("hang", 1, SCRIPTED), "later": Step("never", 1, SCRIPTED)}
    with pytest.raises(KeyboardInterrupt):
        run_all(RunPlan(tmp_path, device="cpu"), "run.sh", interrupted, steps)
    record = read_record(tmp_path / "gpu-run.json")
    assert [step.status for step in record.steps] == ["interrupted", "waiting"]
    assert [row.what for row in record.steps[0].rows] == ["before it goes hang", "started a child"]
    assert not record.finished
    assert record.exit_code == 1
    assert not lives(int(pid_file.read_text()))


def test_the_file_is_whole_and_true_after_every_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def look(_: str) -> None:
        record = read_record(tmp_path / "gpu-run.json")
        seen.append((record.steps[0].status, len(record.steps[0].rows)))

    run_all(RunPlan(tmp_path, device="cpu"), "run.sh", look, {"step": Step("goes well", 1, SCRIPTED)})
    assert seen == [("waiting", 0), ("running", 1)]


def test_steps_for_which_no_time_is_left_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = run_all(RunPlan(tmp_path, minutes=0.01, device="cpu"), "run.sh", steps={"a": Step("a", 1, SCRIPTED)})
    assert [(step.status, step.reason) for step in record.steps] == [
        ("out of time", "no time of --minutes 0.01 was left")
    ]
    assert record.exit_code == 0


def test_only_the_steps_that_are_asked_for_are_done(tmp_path: Path) -> None:
    steps = {name: Step(name, 1, SCRIPTED) for name in ("a", "b", "c")}
    record = run_all(RunPlan(tmp_path, device="cpu", steps=("c", "a")), "run.sh", steps=steps)
    assert [step.name for step in record.steps] == ["a", "c"]


def test_a_bundle_is_told_of_and_a_broken_one_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FUSELINE_BUNDLE", str(tmp_path))
    with pytest.raises(InputError, match="is no folder of an installed bundle"):
        run_all(RunPlan(tmp_path / "out", device="cpu"), "run.sh", steps={})
    manifest = {"revision": "abc", "target": "has.txt", "python": "3.12", "files": []}
    (tmp_path / "bundle.json").write_text(json.dumps(manifest))
    record = run_all(RunPlan(tmp_path / "out", device="cpu"), "run.sh", steps={})
    assert record.bundle == {"revision": "abc", "target": "has.txt", "python": "3.12"}


def test_a_long_log_keeps_its_beginning_and_its_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "MAX_LOG_BYTES", 100)
    log = tmp_path / "log"
    log.write_bytes(b"first" + b"." * 500 + b"last")
    runner._shorten(log)
    text = log.read_bytes()
    assert text.startswith(b"first")
    assert text.endswith(b"last")
    assert b"the middle is left out" in text
    assert len(text) < 200


def test_an_out_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--out .*file can't be written to"):
        run_all(RunPlan(tmp_path / "file", device="cpu"), "run.sh", steps={})


def test_every_step_has_a_module_of_its_own_and_the_weights_are_ten_minutes() -> None:
    assert len({step.module for step in STEPS.values()}) == len(STEPS)
    assert sum(step.weight for step in STEPS.values()) == 600
