"""The profiles on paper, which docs/planning.md reckons with."""

import sys
from pathlib import Path

import pytest

from fuseline.benchmarks.plan.profile import load_profile
from tests.serve.processes import ROOT

PROFILES = ROOT / "examples" / "profiles"


def test_the_committed_profiles_are_those_that_the_results_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from paper_profiles import paper_profiles  # type: ignore[import-not-found]

    made = paper_profiles()
    assert {path.stem for path in Path(PROFILES).glob("*.json")} == set(made)
    for name, profile in made.items():
        assert load_profile(PROFILES / f"{name}.json") == profile
        assert profile.machine.startswith("on paper: ")
    sys.modules.pop("paper_profiles", None)
