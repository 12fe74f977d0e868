import json
from pathlib import Path
from typing import Any

import pytest

from fuseline.benchmarks.plan.profile import Profile, load_profile, save_profile
from fuseline.serve.errors import InputError
from tests.benchmarks.plan.profiles import LANES, profile_of


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "profile.json"
    values = json.loads(LANES.model_dump_json()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))
    return path


@pytest.mark.parametrize("profile", [LANES, profile_of()], ids=["lanes", "one lane"])
def test_a_profile_is_read_as_it_was_written(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    save_profile(path, profile)
    assert load_profile(path) == profile


def test_one_written_by_hand_needs_one_figure_for_each_bucket(tmp_path: Path) -> None:
    path = tmp_path / "h100.json"
    path.write_text(
        """{"format": 1, "model": "resnet50", "machine": "H100, 16 cores", "backend": "tensorrt", "precision": "fp16",
        "device": "GPU", "measured": "2026-11-26", "lanes": 2, "cores": 16, "memory_bytes": 2000000000,
        "start_seconds": 12.5, "buckets": [{"rows": 1, "seconds": [0.0012]}, {"rows": 32, "seconds": [0.0024],
        "idle_ratio": 0.6}], "front_end": {"loop_seconds": 0.0001, "cpu_seconds": 0.0003, "request_mb": 0.15,
        "transport_seconds": 0.0003}}"""
    )
    profile = load_profile(path)
    assert (profile.max_batch, profile.lanes, profile.alone) == (32, 2, ())
    assert profile.rows_per_s == pytest.approx(2 * 32 / 0.0024)


BUCKET = {"rows": 1, "seconds": [0.01]}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"format": 2}, "format: Input should be 1"),
        ({"lanes": ...}, "lanes: Field required"),
        ({"lanes": 0}, "lanes: Input should be greater than or equal to 1"),
        ({"lanes": 2.0}, "lanes: Input should be a valid integer"),
        ({"cores": "2"}, "cores: Input should be a valid integer"),
        ({"device": "TPU"}, "device: Input should be 'CPU' or 'GPU'"),
        ({"measured": "yesterday"}, "measured: Input should be a valid date"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"model": ""}, "model: String should have at least 1 character"),
        ({"buckets": []}, "buckets: Tuple should have at least 1 item"),
        ({"buckets": [BUCKET | {"seconds": []}], "alone": []}, "buckets.0.seconds: Tuple should have at least 1 item"),
        ({"buckets": [BUCKET | {"seconds": [0]}], "alone": []}, "buckets.0.seconds.0: Input should be greater than 0"),
        ({"buckets": [BUCKET | {"seconds": [-1]}], "alone": []}, "greater than 0"),
        ({"buckets": [BUCKET | {"rows": 0}], "alone": []}, "buckets.0.rows: Input should be greater than or equal to"),
        (
            {"buckets": [BUCKET, BUCKET], "alone": []},
            "buckets of [1, 1] rows: expected each larger than the one before",
        ),
        ({"alone": [BUCKET | {"rows": 2}]}, "alone has batches of [2] rows: expected the first of [1, 2, 3, 4]"),
        ({"lanes": 1}, "alone was given with 1 lane, which has all cores anyway; leave it out"),
        ({"front_end": {}}, "front_end.loop_seconds: Field required"),
        ({f"field {number}": 1 for number in range(9)}, "and 6 more"),
        ({"\x1b[2J\n": 1}, "\\x1b[2J\\n: Extra inputs"),
        ({"x" * 10_000: 1}, "…"),
    ],
)
def test_a_broken_profile_is_refused_in_one_line(changes: dict[str, Any], rule: str, tmp_path: Path) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(InputError) as raised:
        load_profile(path)
    message = str(raised.value)
    assert message.startswith(f"{path} is no profile of format 1: ")
    assert rule in message
    assert message.isprintable()
    assert len(message) < 1000


def test_infinite_and_unreadable_figures_are_refused(tmp_path: Path) -> None:
    for text in ("NaN", "Infinity", "1e999"):
        path = written(tmp_path)
        path.write_text(path.read_text().replace('"start_seconds": 3.0', f'"start_seconds": {text}'))
        with pytest.raises(InputError, match="is no profile of format 1"):
            load_profile(path)
    for data in (b"", b"{", b"[" * 100_000, b"\xff\xfe", b"null", b"[1, 2]"):
        path.write_bytes(data)
        with pytest.raises(InputError, match="is no profile of format 1") as raised:
            load_profile(path)
        assert "\n" not in str(raised.value)


def test_what_is_not_there_or_no_file_or_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read: No such file"):
        load_profile(tmp_path / "none.json")
    with pytest.raises(InputError, match="can't be read: Is a directory"):
        load_profile(tmp_path)
    with pytest.raises(InputError, match="can't be written: No such file"):
        save_profile(tmp_path / "none" / "p.json", LANES)


def test_a_file_far_too_large_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuseline.benchmarks.plan.profile.MAX_PROFILE_BYTES", 100)
    with pytest.raises(InputError, match="has more than 100 bytes; no profile does"):
        load_profile(written(tmp_path))
