import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fuseline.benchmarks.harness.results import conditions
from fuseline.benchmarks.revisions.compare import abba_stretches, measure_rounds, rows_of_timings, write_files
from fuseline.benchmarks.revisions.contenders import CaseContender, Costs, started_case
from fuseline.benchmarks.revisions.exact_costs import counted_segments, instructions, peak_bytes, why_no_callgrind
from fuseline.benchmarks.revisions.report import Row, as_markdown
from fuseline.benchmarks.revisions.trees import Tree, write_tree
from fuseline.benchmarks.revisions.verdict import EXACT_TOLERANCE, MEMORY_SLACK, judge_counts, round_ratio
from fuseline.serve.errors import BackendError, InputError
from tests.commands import exit_code

CHECKOUT = Path(__file__).resolve().parents[3]
CORE = min(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with this checkout's code as its only commit, tagged `base`."""
    folder = tmp_path_factory.mktemp("compare") / "repository"
    for package in ("serve", "protos", "fuseline"):
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / package, folder / package, symlinks=True, ignore=skipped)
    (folder / ".gitignore").write_text("ignored\n")
    git(folder, "init", "--quiet")
    commit(folder, "base")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("files") / "files")


@pytest.fixture(scope="module")
def base(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return write_tree("base", repository, tmp_path_factory.mktemp("trees") / "base")


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=test", "-c", "user.email=test@test.invalid", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def commit(folder: Path, tag: str) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", tag)
    git(folder, "tag", "--force", tag)


def changed(base: Tree, folder: Path, name: str, change: Callable[[str], str]) -> Tree:
    """A copy of `base` with one file changed."""
    shutil.copytree(base.folder, folder, symlinks=True)
    path = folder / name
    path.write_text(change(path.read_text()))
    return Tree("changed", folder)


def test_a_checkout_is_taken_as_it_is_now_and_a_revision_as_it_was(repository: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(repository, checkout, symlinks=True)
    (checkout / "serve" / "new.py").write_text("")
    (checkout / "ignored").write_text("")
    (checkout / "serve" / "errors.py").unlink()
    now, then = write_tree(".", checkout, tmp_path / "now"), write_tree("base", checkout, tmp_path / "then")
    assert (now.folder / "serve" / "new.py").is_file()
    assert not (now.folder / "ignored").exists()
    assert not (now.folder / "serve" / "errors.py").exists()
    assert not (then.folder / "serve" / "new.py").exists()
    assert (then.folder / "serve" / "errors.py").is_file()
    assert "and changes" in now.name


def test_what_runs_is_the_code_of_the_tree(base: Tree, files: Path, tmp_path: Path) -> None:
    broken = changed(
        base, tmp_path / "broken", "serve/batching/batcher.py", lambda text: f"raise KeyError('here')\n{text}"
    )
    with pytest.raises(BackendError, match="KeyError: 'here'"), started_case(broken, "batcher", files, CORE):
        pass


def test_code_from_elsewhere_is_refused(base: Tree, files: Path, tmp_path: Path) -> None:
    # Without `protos`, Python would find those of the checkout that the environment was made for.
    (tmp_path / "tree").mkdir()
    for package in ("serve", "fuseline"):
        shutil.copytree(base.folder / package, tmp_path / "tree" / package, symlinks=True)
    elsewhere = Tree("elsewhere", tmp_path / "tree")
    with pytest.raises(BackendError, match=r"protos is imported from|No module named 'protos'"):  # noqa: SIM117
        with started_case(elsewhere, "batcher", files, CORE):
            pass


class RecordingContender:
    def __init__(self, name: str, order: list[str]) -> None:
        self._name, self._order = name, order

    def stretch(self) -> Costs:
        self._order.append(self._name)
        return {"cpu": float(len(self._order)), "wall": 1.0}


def test_contenders_take_turns_and_every_second_abba_is_turned_round() -> None:
    order: list[str] = []
    found = abba_stretches(RecordingContender("a", order), RecordingContender("b", order), 2)
    assert "".join(order) == "abbabaab"
    # As listed each is a, b, b, a again.
    assert [[stretch["cpu"] for stretch in abba] for abba in found] == [[1, 2, 3, 4], [6, 5, 8, 7]]


def test_a_case_that_only_the_base_lacks_is_new_and_one_that_head_lacks_is_broken(
    base: Tree, files: Path, tmp_path: Path
) -> None:
    without = changed(base, tmp_path / "without", "serve/images.py", lambda text: text.replace("decode_image", "other"))
    far = float("inf")
    new = measure_rounds(without, base, files, ["decode"], 2, far, lambda _: None)["decode"]
    gone = measure_rounds(base, without, files, ["decode"], 2, far, lambda _: None)["decode"]
    assert {row.outcome for row in rows_of_timings(new)} == {"new"}
    assert {row.outcome for row in rows_of_timings(gone)} == {"broken"}
    assert "has no attribute 'decode_image'" in new.failed["base"]


def test_every_case_runs_on_this_code(base: Tree, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuseline.benchmarks.revisions.compare.ABBAS", 2)
    monkeypatch.setattr("fuseline.benchmarks.revisions.compare.SERVER_ABBAS", 2)
    cases = ["batcher", "decode", "server"]
    timings = measure_rounds(base, base, files, cases, 1, float("inf"), lambda _: None)
    for each in timings.values():
        assert not each.failed
        assert len(each.control) == len(each.change) == 1
        assert all(stretch["cpu"] > 0 and stretch["wall"] > 0 for abba in each.change[0] for stretch in abba)


def test_rounds_that_take_too_long_are_given_up(base: Tree, files: Path) -> None:
    with pytest.raises(InputError, match="0 of 10 rounds took all the time; allow more --minutes"):
        measure_rounds(base, base, files, ["batcher"], 10, 0.0, lambda _: None)


@pytest.mark.parametrize("case", ["batcher", "service"])
def test_memory_of_a_request_hardly_varies(case: str, base: Tree, files: Path) -> None:
    first, second = peak_bytes(base, files, case), peak_bytes(base, files, case)
    assert judge_counts(first, second).outcome == "unchanged"
    assert first > 100


def test_a_copy_of_the_pixels_is_seen_in_the_memory(base: Tree, files: Path, tmp_path: Path) -> None:
    plant = "\n_submit = Batcher.submit\n\n\ndef _copying(self, rows, **named):\n"
    plant += "    return _submit(self, [row.copy() for row in rows], **named)\n\n\nBatcher.submit = _copying\n"
    copying = changed(base, tmp_path / "copying", "serve/batching/batcher.py", lambda text: text + plant)
    before, after = (peak_bytes(tree, files, "batcher") for tree in (base, copying))
    assert judge_counts(before, after, MEMORY_SLACK).outcome == "regressed"


def test_counts_are_read_segment_by_segment(tmp_path: Path) -> None:
    for number in range(1, 8):
        (tmp_path / f"counts.{number}").write_text(f"summary: 1\ntotals: {number}\n")
    assert counted_segments(tmp_path / "counts") == [2, 3, 4, 5, 6, 7]
    (tmp_path / "counts.7").unlink()
    with pytest.raises(BackendError, match="wrote 5 counts, expected 6"):
        counted_segments(tmp_path / "counts")


BAD_INPUT = [
    (["no-such-branch"], "no-such-branch: git knows no such revision"),
    (["base", "./no-such-folder"], "there is no folder"),
    (["--output=x", "."], "no such option"),
    (["base", "--case", "batcher,abacus"], "abacus is none of batcher, decode, server"),
    (["base", "--rounds", "9"], "rounds"),
    (["base", "--json", "/dev/null/x.json"], "can't be written"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=[" ".join(each) for each, _ in BAD_INPUT])
def test_bad_input_is_told_with_exit_code_2(
    arguments: list[str],
    message: str,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code("fuseline", "bench", "compare", *arguments, "--repository", repository) == 2
    said = capsys.readouterr().err
    assert message.lower() in said.lower()
    assert "Traceback" not in said


def test_it_runs_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fuseline", "bench", "compare", "--help"]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "BASE" in done.stdout


def test_the_table_says_what_happened_to_each_cost() -> None:
    rows = [
        Row("a", "µs", base=100.0, head=120.0, verdict=judge_counts(100, 120)),
        Row("b", "µs", base=100.0, head=100.0, verdict=judge_counts(100, 100)),
        Row("c", "µs", failed={"base": "ImportError: x"}),
        Row("d", "µs", failed={"head": "ImportError: y"}),
        Row("e", "", skipped="valgrind is not installed"),
    ]
    text = as_markdown(rows, "main", "this", 10, conditions("compare").facts)
    assert "this against main: 2 of 5 costs regressed" in text
    assert f"| a | 100 µs | 120 µs | +20.0% | {EXACT_TOLERANCE:.1%} |  | **regressed** |" in text
    assert "| b | 100 µs | 100 µs | +0.0% |" in text
    assert "| c |  |  |  |  |  | new |" in text
    assert "- d: head can't run it: ImportError: y" in text
    assert "- e: valgrind is not installed" in text


@pytest.fixture(scope="module")
def planted(repository: Path, base: Tree, files: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A revision whose batcher takes 15 % more CPU time for a batch: it counts before it forms one, calibrated here."""
    folder = tmp_path_factory.mktemp("planted")
    trial = 4000
    slow = changed(base, folder / "trial", "serve/batching/batcher.py", lambda text: text + plant(trial))
    shares = []
    for _ in range(5):
        with started_case(base, "batcher", files, CORE) as a, started_case(slow, "batcher", files, CORE) as b:
            shares.append(round_ratio(cpu_of(a, b)) - 1)
    count = round(trial * 0.15 / sorted(shares)[2])
    path = repository / "serve" / "batching" / "batcher.py"
    path.write_text(path.read_text() + plant(count))
    commit(repository, "planted")
    return "planted"


def plant(count: int) -> str:
    text = "\n_take = RequestQueue.take_batch\n\n\ndef _counting(*arguments):\n"
    text += f"    for _ in range({count}):\n        pass\n    return _take(*arguments)\n\n\n"
    return f"{text}RequestQueue.take_batch = _counting\n"


def cpu_of(a: CaseContender, b: CaseContender) -> list[list[float]]:
    a.cycles = b.cycles = a.suggested_cycles
    return [[stretch["cpu"] for stretch in abba] for abba in abba_stretches(a, b, 60)]


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(10))
@pytest.mark.parametrize("head", ["planted", "base"])
def test_15_percent_more_work_in_the_batcher_is_caught_and_none_passes(
    head: str,
    attempt: int,
    planted: str,
    repository: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the times alone; instructions would tell it at once."""
    result = tmp_path / "result.json"
    arguments = ["base", head, "--repository", repository, "--case", "batcher", "--no-exact", "--json", result]
    code = exit_code("fuseline", "bench", "compare", *arguments)
    assert code == (1 if head == planted else 0), capsys.readouterr().out
    rows = json.loads(result.read_text())["costs"]
    assert [row["outcome"] for row in rows if "CPU" in row["name"]] == ["regressed" if head == planted else "unchanged"]


@pytest.mark.slow
@pytest.mark.skipif(why_no_callgrind() is not None, reason=str(why_no_callgrind()))
def test_instructions_tell_15_percent_from_none(
    planted: str, repository: Path, base: Tree, files: Path, tmp_path: Path
) -> None:
    slow = write_tree(planted, repository, tmp_path / "slow")
    first, second, more = (instructions(tree, files, "batcher") for tree in (base, base, slow))
    assert judge_counts(first, second).outcome == "unchanged"
    assert judge_counts(first, more).outcome == "regressed"
