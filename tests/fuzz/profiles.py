"""Profiles for plans."""

import json

from fuseline.benchmarks.plan.profile import profile_from_json
from fuseline.serve.errors import InputError
from tests.benchmarks.plan.profiles import LANES
from tests.fuzz.target import Target, check_message


def _profile(data: bytes) -> None:
    try:
        profile = profile_from_json(data, "p.json")
    except InputError as error:
        check_message(error, most=1500)
        _check_line(str(error))
    else:
        assert profile.rows_per_s > 0


def _check_line(message: str) -> None:
    assert message.isprintable(), message


def _profiles() -> list[bytes]:
    sound = json.loads(LANES.model_dump_json())
    many = sound | {"buckets": [{"rows": 1, "seconds": [0.01] * 5000}], "alone": []}
    huge = sound | {"lanes": 10**400, "model": "\n" * 300, "\x1b[2J": 1}
    return [*(json.dumps(each).encode() for each in (sound, many, huge)), b"[" * 50_000, b'{"buckets":[1e999]}']


TARGETS: dict[str, Target] = {"profiles": Target(_profile, _profiles)}
"""Readers of what measures."""
