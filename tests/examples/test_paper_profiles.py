"""The profiles on paper, and the figures that docs/planning.md has of them."""

import json
from pathlib import Path

import pytest

from fuseline.benchmarks.plan.profile import load_profile
from tests.commands import Run
from tests.serve.processes import ROOT

PROFILES = ROOT / "examples" / "profiles"
PAGE = (ROOT / "docs" / "planning.md").read_text()


def test_the_committed_profiles_are_those_that_the_results_come_to() -> None:
    from paper_profiles import paper_profiles  # type: ignore[import-not-found]

    made = paper_profiles()
    assert {path.stem for path in PROFILES.glob("*.json")} == set(made)
    for name, profile in made.items():
        assert load_profile(PROFILES / f"{name}.json") == profile
        assert profile.machine.startswith("on paper: ")


def test_the_pages_table_of_front_ends_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    from paper_profiles import print_front_ends

    print_front_ends()
    printed = capsys.readouterr().out.strip()
    assert printed.count("\n") == 9
    assert printed in PAGE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "title", "arrivals"),
    [
        ("raw", "raw pictures of 150 KB, one a request", ("--rate", "1000000")),
        ("raw-16", "raw pictures, 16 a request", ("--rate", "62500", "--rows", "16")),
    ],
)
def test_the_pages_table_of_a_million_pictures_is_what_the_plans_say(
    run_fuseline: Run, tmp_path: Path, profile: str, title: str, arrivals: tuple[str, ...]
) -> None:
    file, path = PROFILES / f"resnet50-h100-{profile}.json", tmp_path / "plan.json"
    done = run_fuseline("plan", "--profile", file, *arrivals, "--p99", "50ms", "--price", "2.1", "--json", path)
    assert done.exit_code == 0, done.stderr
    plan = json.loads(path.read_text())
    latency, cost, cores = plan["figures"]["latency_ms"], plan["cost"], plan["replicas"] * plan["profile"]["cores"]
    row = (
        f"| {title} | {plan['replicas']} | {latency['p50']:.1f}, {latency['p99']:.1f} ms | "
        f"{cost['hour']:,.0f} | {cost['million_pictures']:.3f} | {plan['front_end_cores']:,.0f} of {cores:,} | "
        f"{plan['network_gbit_per_s']:,.0f} Gbit/s |"
    )
    assert row in PAGE
