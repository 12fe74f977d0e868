"""`python -m fuseline.benchmarks.gpu`, as run.sh calls it."""

import subprocess
import sys
from pathlib import Path

import pytest

from fuseline.benchmarks.gpu.run.record import RunRecord, StepRecord
from fuseline.serve.backends.gpu.nvidia_driver import nvidia_driver

ROOT = Path(__file__).parents[4]


def gpu(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "fuseline.benchmarks.gpu", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(nvidia_driver() is not None, reason="this machine has an NVIDIA driver")
def test_without_a_driver_it_ends_with_one_line(tmp_path: Path) -> None:
    code, out, err = gpu("run", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err == (
        "error: no NVIDIA driver is installed on this machine; --device cpu rehearses the run without a GPU\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--device", "tpu"), "--device tpu: tpu is none of cuda, cpu"),
        (("--steps", "probe,dance"), "--steps probe,dance: dance is none of machine, probe, package"),
        (("--batch", "0"), "--batch '0': numbers from 1 to 4096"),
        (("--models", "resnet19"), "--model resnet19: neither a checkpoint nor one of"),
        (("--out", "/dev/null/x"), "--out /dev/null/x can't be made: Not a directory"),
    ],
)
def test_bad_input_is_one_line(flags: tuple[str, ...], message: str, tmp_path: Path) -> None:
    code, _, err = gpu("run", "--device", "cpu", "--out", tmp_path, *flags)
    assert code == 2
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_a_run_of_one_step_writes_its_files_and_prints_its_table(tmp_path: Path) -> None:
    code, out, err = gpu("run", "--device", "cpu", "--steps", "machine", "--minutes", "1", "--out", tmp_path)
    assert code == 0, err
    assert "The machine: doctor, nvidia-smi, versions" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu-run.json", "gpu-run.log", "gpu-run.md"]
    table = gpu("table", tmp_path / "gpu-run.json")
    assert table == (0, (tmp_path / "gpu-run.md").read_text(), "")
    assert "run.sh --minutes 1 --device cpu --models resnet50,resnet18" in table[1]


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"benchmark": "gpu"}')
    code, _, err = gpu("table", tmp_path / "other.json")
    assert code == 2
    assert "other.json is no result of a GPU run" in err


def test_a_committed_result_is_still_read(tmp_path: Path) -> None:
    """Results in the repository outlive the code that wrote them; without any, one of today's form stands for them."""
    results = sorted((ROOT / "benchmarks" / "results").glob("gpu-run-*.json"))
    if not results:
        facts = {"command": "run.sh", "started_utc": "2026-11-26T12:00:00+00:00", "load_average_before": 0.0}
        machine = {"cpu": None, "usable_cores": 1, "memory_gib": 1, "gpu": None, "python": "3.12", "versions": {}}
        record = RunRecord(
            **facts,
            machine=machine | {"git_revision": None},
            gpu=None,
            bundle=None,
            minutes=10,
            device="cuda",
            steps=[StepRecord(name="machine", title="The machine")],
        )
        record.write(tmp_path / "gpu-run-none.json")
        results = [tmp_path / "gpu-run-none.json"]
    for path in results:
        code, out, err = gpu("table", path)
        assert code == 0, err
        assert out
