import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_short_run_measures_evenness_faults_and_costs(tmp_path: Path) -> None:
    path = tmp_path / "balanced.json"
    command = [sys.executable, "-m", "fuseline.benchmarks.balanced", "--seconds", "1", "--rounds", "1", "--json", path]
    subprocess.run(command, cwd=ROOT, check=True, timeout=280)
    found = json.loads(path.read_text())
    assert found["benchmark"] == "balanced"
    assert all(each["failed"] == 0 and len(each["answers"]) == 3 for each in found["evenness"])
    assert {each["fault"]: each["failed"] for each in found["faults"]} == {"killed": 0, "stopped": 0, "drained": 0}
    assert all(each["until_no_requests_s"] is not None for each in found["faults"])
    assert {(each["servers"], each["by_stream"]) for each in found["cpu"]} == {
        (1, False),
        (1, True),
        (3, False),
        (3, True),
    }
    calls, streams = (each["server_us"]["median"] for each in found["cpu"][:2])
    assert streams < calls / 2
