import json
import subprocess
import sys
from pathlib import Path

import pytest

from fuseline.benchmarks.harness.stats import spread_of
from fuseline.benchmarks.simulated_backend import images_per_s
from fuseline.benchmarks.worker_ceiling import Case, Point, extrapolate

ROOT = Path(__file__).parents[2]


def point(*, front_cpu_ms: float, backend_cpu_ms: float) -> Point:
    one = spread_of([1.0])
    return Point("3 KB", 2, one, spread_of([front_cpu_ms]), spread_of([backend_cpu_ms]), one, 0)


@pytest.mark.parametrize(
    ("front_cpu_ms", "backend_cpu_ms", "images", "limit"),
    [
        (0.5, 0.01, 30_000, "workers"),
        (0.1, 0.05, 20_000, "backend process"),
        (0.001, 0.001, images_per_s(32), "device"),
    ],
)
def test_a_larger_machine_is_limited_by_what_is_slowest_there(
    front_cpu_ms: float, backend_cpu_ms: float, images: float, limit: str
) -> None:
    found = extrapolate(point(front_cpu_ms=front_cpu_ms, backend_cpu_ms=backend_cpu_ms), cores=16)
    assert (found.workers, found.limit) == (15, limit)
    assert found.images_per_s == pytest.approx(images)


def test_a_case_names_what_a_request_holds() -> None:
    assert [str(Case(32, 1)), str(Case(32, 16)), str(Case(224, 1))] == ["3 KB", "3 KB x 16", "151 KB"]


@pytest.mark.slow
def test_it_measures_one_process_and_two_workers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fuseline.benchmarks.worker_ceiling", "--rounds", "1", "--seconds", "0.5"]
    out = tmp_path / "ceiling.json"
    words = ["--workers", "1", "--workers", "2", "--json", str(out)]
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "on 16 cores, 15 workers" in " ".join(done.stdout.split())
    record = json.loads(out.read_text())
    assert [(each["case"], each["workers"]) for each in record["points"]] == [
        (case, workers) for case in ("3 KB", "3 KB x 16", "151 KB") for workers in (1, 2)
    ]
    assert all(each["images_per_s"]["median"] > 0 and not each["errors"] for each in record["points"])
    assert (record["points"][0]["backend_cpu_ms"] is None, record["machine"]["usable_cores"] > 0) == (True, True)
