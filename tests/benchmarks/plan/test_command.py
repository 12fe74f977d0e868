"""`fuseline plan` from its command line to its page, on servers that are a formula."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from fuseline.benchmarks.plan import fleet, measure, side_by_side
from fuseline.benchmarks.plan.profile import BucketSeconds, Profile, load_profile, save_profile
from tests.benchmarks.plan.formula import simulate
from tests.benchmarks.plan.profiles import profile_of
from tests.commands import Run, only_error

QUICK = profile_of({1: 0.002, 2: 0.003, 4: 0.005, 8: 0.009}, machine="Two <cores> & more")
SOUND = ("--rate", "1500", "--p99", "80ms")


@pytest.fixture(autouse=True)
def _servers_are_a_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "Fleet", partial(fleet.Fleet, simulate=simulate))
    # Other processes would have the real one.
    monkeypatch.setattr(side_by_side, "side_by_side", side_by_side.one_after_another)


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    save_profile(tmp_path / "profile.json", QUICK)
    return tmp_path / "profile.json"


BAD = {
    "no latency": (["--rate", "9"], "in what time should requests be answered? Give --p99 20ms"),
    "no arrivals": (["--p99", "9ms"], "how many requests come? Give --rate REQUESTS_A_SECOND or --trace FILE"),
    "both": (["--rate", "9", "--trace", "x", "--p99", "9ms"], "--rate and --trace were given"),
    "a rate of 0": (["--rate", "0", "--p99", "9ms"], "--rate 0: requests a second were expected, above 0"),
    "a negative rate": (["--rate", "-5", "--p99", "9ms"], "--rate -5: requests a second"),
    "NaN": (["--rate", "nan", "--p99", "9ms"], "--rate nan: requests a second"),
    "an infinite rate": (["--rate", "inf", "--p99", "9ms"], "--rate inf: requests a second"),
    "a latency in hours": (["--rate", "9", "--p99", "1h"], "--p99: '1h' is no latency; expected such as 50ms"),
    "a latency of 0": (["--rate", "9", "--p50", "0ms"], "--p50 0ms: a latency above 0"),
    "a deadline of nothing": (["--rate", "9", "--p99", "9", "--deadline", ""], "--deadline: '' is no latency"),
    "a burst of nothing": (["--rate", "9", "--p99", "9", "--burst", "3"], "--burst: '3' is no burst; expected such as"),
    "a burst in a trace": (["--trace", "x", "--p99", "9", "--burst", "3x/2s"], "--burst goes with --rate"),
    "no trace": (["--trace", "none", "--p99", "9"], "--trace none can't be read: No such file"),
    "a page that is none": ([*SOUND, "--html", "x.pdf"], "--html x.pdf: a name that ends in .html was expected"),
    "a folder that isn't there": ([*SOUND, "--json", "none/x.json"], "--json none/x.json: there is no folder none"),
    "too many pictures": (["--rate", "9", "--rows", "500", "--p99", "9"], "a request of 500 pictures: servers take at"),
    "keeping what isn't measured": ([*SOUND, "--save-profile", "x"], "--save-profile keeps what is measured here"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_wrong_input_is_one_line_and_2(
    run_fuseline: Run, profile: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(profile.parent)
    assert message in only_error(run_fuseline("plan", "--profile", profile, *arguments))


@pytest.mark.parametrize(
    "arguments", [("--rows", "0"), ("--headroom", "-1"), ("--price", "-1"), ("--max-replicas", "0")]
)
def test_numbers_out_of_range_are_refused(run_fuseline: Run, profile: Path, arguments: tuple[str, str]) -> None:
    result = run_fuseline("plan", "--profile", profile, *SOUND, *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr


def test_a_package_or_a_profile_that_is_not_there_or_none_is_one_line(
    run_fuseline: Run, profile: Path, colours: Path, tmp_path: Path
) -> None:
    assert "name a model package, which is measured here, or" in only_error(run_fuseline("plan", *SOUND))
    assert "none" in only_error(run_fuseline("plan", tmp_path / "none", *SOUND))
    assert "none.json can't be read" in only_error(run_fuseline("plan", "--profile", tmp_path / "none.json", *SOUND))
    (tmp_path / "broken.json").write_text("{}")
    assert "is no profile" in only_error(run_fuseline("plan", "--profile", tmp_path / "broken.json", *SOUND))
    told = only_error(run_fuseline("plan", colours, "--profile", profile, *SOUND))
    assert f"--profile {profile} was measured of net, and {colours} is colours; leave --profile out" in told


def test_what_no_number_of_replicas_does_is_one_line_and_1(run_fuseline: Run, profile: Path) -> None:
    result = run_fuseline("plan", "--profile", profile, "--rate", "100", "--p99", "1ms")
    assert result.exit_code == 1
    assert re.fullmatch(
        r"error: no number of replicas keeps p99 1 ms; almost idle ones have p99 .* ms: .*\n", result.stderr
    )


def test_the_answer_comes_first_and_the_files_have_it_too(run_fuseline: Run, profile: Path, tmp_path: Path) -> None:
    page, figures = tmp_path / "plan.html", tmp_path / "plan.json"
    result = run_fuseline("plan", "--profile", profile, *SOUND, "--price", "2.5", "--html", page, "--json", figures)
    assert result.exit_code == 0, result.stderr
    answer = result.stdout.splitlines()[0]
    assert re.match(r"3 replicas; .*p50 .* ms, p99 .* ms; goodput 1,500/s; 63% of capacity; 7.50 an hour, ", answer)
    told = json.loads(figures.read_text())
    assert (told["replicas"], told["cost"]["hour"]) == (3, 7.5)
    for case in (
        "0.1 of capacity",
        "1.2 of capacity",
        "a burst: 2x for 2 s",
        "3 replicas, then one lost",
        "4 replicas",
    ):
        assert case in result.stdout
        assert case in page.read_text()
    assert "fuseline serve net" in result.stdout
    assert "fuseline manifest kubernetes net --replicas 3" in result.stdout


def test_the_page_needs_no_other_file_and_escapes_names(run_fuseline: Run, profile: Path, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    assert run_fuseline("plan", "--profile", profile, *SOUND, "--price", "2.5", "--html", page).exit_code == 0
    text = page.read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "http" not in re.sub(r'"data:[^"]*"', "", text)
    assert text.count('src="data:image/png;base64,') == 2
    assert "Two &lt;cores&gt; &amp; more" in text
    assert "<cores>" not in text
    for told in ("2026-11-27", "1,500 requests/s of 1 picture", "p99 within 80 ms", "4 replicas cost 10.00 an hour"):
        assert told in text


def test_the_same_command_writes_the_same_page(run_fuseline: Run, profile: Path, tmp_path: Path) -> None:
    pages = [tmp_path / "one.html", tmp_path / "two.html"]
    for page in pages:
        assert run_fuseline("plan", "--profile", profile, *SOUND, "--html", page).exit_code == 0
    assert pages[0].read_bytes() == pages[1].read_bytes()


@pytest.mark.parametrize(("slow", "is_told"), [(0.02, True), (0.0025, False)])
def test_a_profile_that_was_measured_beside_other_work_is_told(
    run_fuseline: Run, tmp_path: Path, slow: float, is_told: bool
) -> None:
    scattered = BucketSeconds(rows=1, seconds=(*[0.002] * 195, *[slow] * 5))
    save_profile(tmp_path / "profile.json", profile_of(buckets=(scattered,)))
    result = run_fuseline("plan", "--profile", tmp_path / "profile.json", "--rate", "100", "--p99", "80ms")
    assert result.exit_code == 0, result.stderr
    assert ("more than 20 ms, half of them at most 2 ms: was the machine busy" in result.stdout) == is_told


def test_a_trace_is_planned_for(run_fuseline: Run, profile: Path, tmp_path: Path) -> None:
    trace = tmp_path / "day.csv"
    trace.write_text("time,rows\n" + "".join(f"{number / 400:.4f},2\n" for number in range(8000)))
    result = run_fuseline("plan", "--profile", profile, "--trace", trace, "--p99", "90ms")
    assert result.exit_code == 0, result.stderr
    assert "day.csv: 8,000 requests in 19.9975 s, 400.1 a second, 800.1 pictures/s" in result.stdout


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    seen = SimpleNamespace(calls=[])

    def measure_profile(package: Path, *, seconds: float, say: Callable[[str], None]) -> Profile:
        seen.calls.append((package, seconds))
        say("one caller")
        return QUICK

    monkeypatch.setattr(measure, "measure_profile", measure_profile)
    return seen


def test_without_a_profile_one_is_measured_which_is_told_and_kept_only_when_asked(
    run_fuseline: Run, colours: Path, tmp_path: Path, measuring: SimpleNamespace
) -> None:
    result = run_fuseline("plan", colours, *SOUND, "--measure-seconds", "7")
    assert (result.exit_code, measuring.calls) == (0, [(colours, 7.0)])
    assert "measuring colours on this machine for about 7 s" in result.stderr
    assert list(tmp_path.iterdir()) == []
    kept = tmp_path / "kept.json"
    assert run_fuseline("plan", colours, *SOUND, "--save-profile", kept).exit_code == 0
    assert load_profile(kept) == QUICK
