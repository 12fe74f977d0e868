"""Measurements as files: read strictly, and told in lines that a comment can have."""

import json
from pathlib import Path
from typing import Any

import pytest

from fuseline.deploy.manifest.measurement import MAX_BYTES, Measurement, measurement_from_bytes, read_measurement
from fuseline.serve.errors import InputError
from tests.deploy.manifest.sample import FACTS, measured
from tests.refusals import refusal_of


def test_what_is_written_is_read_again() -> None:
    text = measured().model_dump_json()
    assert measurement_from_bytes(text.encode(), "file") == measured()


@pytest.mark.parametrize(
    "changes",
    [
        {"peak_bytes": -1},
        {"peak_bytes": 1e400},
        {"start_s": "soon"},
        {"cpus": 0},
        {"cpu": "a\nkind: Secret"},
        {"backend": "a\u2028b"},
        {"measured_at": "2026-11-27T22:00:00"},
        {"package": "../x"},
        {"more": 1},
        {"format_version": 2},
    ],
    ids=str,
)
def test_what_is_no_measurement_is_refused_by_one_line(changes: dict[str, Any]) -> None:
    data = json.dumps(FACTS | changes).encode()
    message = refusal_of(InputError, measurement_from_bytes, data, "m.json")
    assert message.startswith("m.json is no measurement of `fuseline manifest`: ")
    assert "\n" not in message


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"{}", b"null", b"{" * 5000, b" " * (MAX_BYTES + 1)])
def test_other_bytes_are_refused_by_one_line(data: bytes) -> None:
    assert "\n" not in refusal_of(InputError, measurement_from_bytes, data, "m.json")


def test_a_file_that_can_t_be_read_is_refused(tmp_path: Path) -> None:
    assert "can't be read" in refusal_of(InputError, read_measurement, tmp_path)


def test_it_says_what_was_measured_where_and_when_and_that_another_cpu_differs() -> None:
    told = " ".join(measured().lines)
    for words in (
        "resnet18 (version 1)",
        "2026-11-27 22:00 UTC",
        "2 CPUs of AMD EPYC",
        "480 MiB",
        "200 images/s",
        "Another CPU",
    ):
        assert words in told
    assert isinstance(measured(), Measurement)
