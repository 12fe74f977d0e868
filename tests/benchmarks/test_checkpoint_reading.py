import json
from pathlib import Path

import pytest

from fuseline.benchmarks.checkpoint_reading import Reading, as_json, as_table, measure_reading, written_network
from fuseline.serve.errors import CheckpointError, InputError, VerificationError
from tests.commands import exit_code


@pytest.mark.parametrize(
    ("seconds", "peak_mb", "passed"),
    [
        ((1.0, 2.9, 9.0), (250.0, 299.0), True),
        ((1.0, 3.0, 9.0), (250.0, 299.0), False),
        ((1.0, 1.0, 1.0), (250.0, 300.0), False),
        ((1.0, 1.0, 1.0), (), False),
    ],
    ids=["kept", "too slow", "too much memory", "memory unknown"],
)
def test_the_bars(seconds: tuple[float, ...], peak_mb: tuple[float, ...], passed: bool) -> None:
    reading = Reading("pt", 100.0, seconds, peak_mb)
    assert reading.passed is passed
    assert as_json("resnet152", [reading])["readings"][0]["passed"] is passed
    assert ("PASS" if passed else "FAIL") in str(as_table("resnet152", [reading]).caption)


def test_other_weights_than_were_written_are_told() -> None:
    with written_network("resnet18") as (files, _), pytest.raises(VerificationError, match="other weights"):
        measure_reading({"pt": files["pt"]}, "0" * 64, repeats=1)


def test_what_reading_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        measure_reading({"pt": tmp_path / "model.pt"}, "", repeats=1)


def test_a_network_that_torchvision_lacks() -> None:
    with pytest.raises(InputError, match="no classifier of torchvision"), written_network("resnet7"):
        pytest.fail("it was written")


def test_the_command_measures_and_writes_every_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "read.json"
    monkeypatch.setattr("fuseline.benchmarks.checkpoint_reading.TIME_BAR_S", 600.0)
    assert exit_code("fuseline", "bench", "read", "resnet18", "--repeats", 1, "--json", path) == 0
    assert "reading and recognising resnet18" in capsys.readouterr().out
    written = json.loads(path.read_text())
    assert written["command"] == "fuseline bench read resnet18 --repeats 1"
    assert written["machine"]["versions"]["torch"]
    for reading in written["readings"]:
        assert reading["file_mb"] == pytest.approx(46.8, abs=0.2)
        assert 0.5 < reading["peak_ratio"] < 3
