"""Did a change make Fuseline slower? `fuseline bench compare BASE [HEAD]` measures both revisions in one run.

revisions -> trees of files -> rounds of fresh processes, ABBA -> ratios -> verdicts -> a table, an exit code
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import uvloop

from fuseline.benchmarks.revisions.contenders import CaseContender, Contender, Costs, started_case, started_server_of
from fuseline.benchmarks.revisions.exact_costs import instructions, peak_bytes, why_no_callgrind
from fuseline.benchmarks.revisions.report import Row
from fuseline.benchmarks.revisions.trees import Tree
from fuseline.benchmarks.revisions.verdict import MEMORY_SLACK, judge_counts, judge_times, round_ratio
from fuseline.benchmarks.revisions.worker import PACKAGE_NAME, PICTURE_NAME
from fuseline.serve.errors import BackendError, InputError

ABBAS = 40
SERVER_ABBAS = 20

_UNITS = {"batcher": "a request", "decode": "a JPEG", "server": "a request"}
_JPEG_SIZE = (375, 500, 3)
_SIDE = 32
_CLASSES = 10


@dataclass(slots=True)
class Timings:
    """What was measured of one case, round by round."""

    case: str
    control: list[list[list[Costs]]] = field(default_factory=list)
    """rounds x ABBAs x 4 stretches, base, base, base, base."""
    change: list[list[list[Costs]]] = field(default_factory=list)
    """The same of base, head, head, base."""
    failed: dict[str, str] = field(default_factory=dict)
    """`base` or `head` to why it couldn't run the case."""


def measure_rounds(
    base: Tree, head: Tree, files: Path, cases: Sequence[str], rounds: int, until: float, say: Callable[[str], None]
) -> dict[str, Timings]:
    """Measure `rounds` rounds of each case; each starts fresh processes, since processes of the same code differ.

    In a round come first the ABBAs of base against another process of base, then those of base against head. A case
    that a revision can't run is left out after the first round.

    Raises:
        InputError: `until`, in monotonic seconds, came before the last round.
    """
    timings = {case: Timings(case) for case in cases}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for number in range(rounds):
            for case in cases:
                if time.monotonic() > until:
                    raise InputError(
                        f"{number} of {rounds} rounds took all the time; allow more --minutes, or name fewer --case"
                    )
                if not timings[case].failed:
                    say(f"{case}, round {number + 1} of {rounds}")
                    _measure_round(timings[case], base, head, files, number, runner)
    return timings


def _measure_round(timings: Timings, base: Tree, head: Tree, files: Path, number: int, runner: asyncio.Runner) -> None:
    with ExitStack() as stack:
        contenders: dict[str, Contender] = {}
        for name, tree in (("base", base), ("control", base), ("head", head)):
            try:
                contenders[name] = stack.enter_context(_started(timings.case, tree, files, number, runner))
            except BackendError as error:
                if number:
                    raise
                timings.failed["base" if tree is base else "head"] = str(error)
        if timings.failed:
            return
        _same_work(contenders.values())
        abbas = SERVER_ABBAS if timings.case == "server" else ABBAS
        timings.control.append(abba_stretches(contenders["base"], contenders["control"], abbas))
        timings.change.append(abba_stretches(contenders["base"], contenders["head"], abbas))


def abba_stretches(a: Contender, b: Contender, count: int) -> list[list[Costs]]:
    """(count, 4) stretches, each in the order a, b, b, a, as listed; every second one was run as b, a, a, b."""
    found = []
    for number in range(count):
        if number % 2:
            first_b, first_a, last_a, last_b = (contender.stretch() for contender in (b, a, a, b))
        else:
            first_a, first_b, last_b, last_a = (contender.stretch() for contender in (a, b, b, a))
        found.append([first_a, first_b, last_b, last_a])
    return found


@contextmanager
def _started(case: str, tree: Tree, files: Path, number: int, runner: asyncio.Runner) -> Iterator[Contender]:
    # One core for all, round after round another one: which core a thread wakes on is no part of the code.
    cores = sorted(os.sched_getaffinity(0))
    core = cores[number % len(cores)]
    if case == "server":
        with started_server_of(tree, files, core, runner) as server:
            yield server
    else:
        with started_case(tree, case, files, core) as contender:
            yield contender


def _same_work(contenders: Iterable[Contender]) -> None:
    cases = [contender for contender in contenders if isinstance(contender, CaseContender)]
    for contender in cases:
        contender.cycles = cases[0].suggested_cycles


def rows_of_timings(timings: Timings) -> list[Row]:
    """A row for CPU and one for wall time, in microseconds."""
    rows = []
    for kind in ("cpu", "wall"):
        row = Row(f"{timings.case}, {'CPU' if kind == 'cpu' else 'wall'} time {_UNITS[timings.case]}", "µs")
        if timings.failed:
            row.failed = timings.failed
        else:
            control, change = (
                [[[stretch[kind] for stretch in abba] for abba in block] for block in rounds]
                for rounds in (timings.control, timings.change)
            )
            row.samples = {"control": control, "change": change}
            row.verdict = judge_times(
                [round_ratio(block) for block in control], [round_ratio(block) for block in change]
            )
            row.base, row.head = (
                1e6 * median(block[place] for one in change for block in one for place in places)
                for places in ((0, 3), (1, 2))
            )
        rows.append(row)
    return rows


def count_costs(base: Tree, head: Tree, files: Path, cases: Sequence[str], say: Callable[[str], None]) -> list[Row]:
    """Rows of the exact costs of `cases`; several are counted at a time, which changes no count."""
    missing = why_no_callgrind()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        counting: list[tuple[Row, dict[str, Future[float]]]] = []
        for case in cases:
            for what, unit, count in (("instructions", "", instructions), ("peak memory", "bytes", peak_bytes)):
                row = Row(f"{case}, {what} a request", unit)
                if count is instructions and missing:
                    row.skipped = missing
                    counting.append((row, {}))
                    continue
                trees = {"base": base, "head": head}
                counting.append((row, {name: pool.submit(count, tree, files, case) for name, tree in trees.items()}))
        for row, futures in counting:
            say(row.name)
            _count(row, futures, MEMORY_SLACK if row.unit == "bytes" else 0.0)
    return [row for row, _ in counting]


def _count(row: Row, futures: Mapping[str, Future[float]], slack: float) -> None:
    found = {}
    for name, future in futures.items():
        try:
            found[name] = future.result()
        except BackendError as error:
            row.failed[name] = str(error)
    row.base, row.head = found.get("base"), found.get("head")
    if len(found) == 2:
        row.verdict = judge_counts(found["base"], found["head"], slack)


def write_files(folder: Path) -> Path:
    """What the cases work on, alike for all: a tiny package and a JPEG."""
    from PIL import Image

    from fuseline.benchmarks.harness.pictures import generated_pictures
    from fuseline.benchmarks.harness.tiny_package import write_tiny_package

    folder.mkdir()
    write_tiny_package(folder / PACKAGE_NAME, side=_SIDE, classes=_CLASSES)
    Image.fromarray(generated_pictures(_JPEG_SIZE, 1)[0]).save(folder / PICTURE_NAME, quality=90)
    return folder
