"""`fuseline bench peers`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fuseline.benchmarks.harness.machine import describe
from fuseline.benchmarks.harness.options import choices_of
from fuseline.benchmarks.harness.results import check_writable, conditions, write_result
from fuseline.benchmarks.peers.cases import CASES, PEERS, OverloadCase
from fuseline.serve.errors import InputError

if TYPE_CHECKING:
    from fuseline.benchmarks.peers.overload import OverloadRounds
    from fuseline.benchmarks.peers.rounds import CaseRounds

_USUAL = tuple(name for name, case in CASES.items() if not isinstance(case, OverloadCase))
_NONE = "none"
_PIPE_WIDTH = 200
_CHART_ENDINGS = (".png", ".svg")


def peers(
    case: Annotated[
        str, typer.Option(metavar="NAME,…", help=f"Of {', '.join(CASES)}; overload takes 5 minutes a round.")
    ] = ",".join(_USUAL),
    peer: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help=f"Of {', '.join(PEERS)}, or {_NONE}; all that make peers has installed."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How often each is measured.")] = 7,
    seconds: Annotated[float, typer.Option(min=0.2, max=600, help="How long each stretch is measured.")] = 2.0,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write every figure here.")] = None,
    chart: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the case overload here, as .png or .svg.")
    ] = None,
) -> None:
    """Measure Fuseline beside a bare grpc.aio echo, Triton and Mosec. The exit code is 1 if a bar is missed."""
    from fuseline.benchmarks.peers.compare import run_peers
    from fuseline.benchmarks.peers.processes import peer_versions, why_left_out
    from fuseline.benchmarks.peers.rounds import as_json, verdicts
    from fuseline.benchmarks.peers.table import as_tables

    names = choices_of("--case", case, CASES)
    if chart is not None:
        _check_chart(chart, names)
    missing = {name: why for name in PEERS if (why := why_left_out(name)) is not None}
    chosen = peers_asked_for(peer, missing)
    left_out = {
        name: missing.get(name, f"{PEERS[name]} is left out: --peer {peer} doesn't name it")
        for name in PEERS
        if name not in chosen
    }
    if json is not None:
        check_writable(json)
    command = (
        f"fuseline bench peers --case {','.join(names)} --peer {','.join(chosen) or _NONE} --rounds {rounds} "
        f"--seconds {seconds:g}"
    )
    taken = conditions(command)
    progress = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(text: str) -> None:
        progress.print(text, markup=False)

    for why in left_out.values():
        say(why)
    found = run_peers(names, peers=chosen, rounds=rounds, seconds=seconds, say=say)
    out = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    out.print(as_tables(found, left_out))
    out.print(describe(taken.facts["machine"]), markup=False, soft_wrap=True)
    versions = {name: peer_versions(name) for name in chosen}
    for name, packages in versions.items():
        listed = ", ".join(f"{package} {version}" for package, version in packages.items())
        out.print(f"{PEERS[name]}: {listed}", markup=False, soft_wrap=True)
    out.print(command, markup=False, soft_wrap=True)
    if json is not None:
        write_result(json, "peers", taken, {"peer_versions": versions} | as_json(found, left_out))
    if chart is not None:
        _draw(chart, found)
    if any(verdict.passed is False for verdict in verdicts(found)):
        raise typer.Exit(1)


def peers_asked_for(text: str | None, missing: Mapping[str, str]) -> tuple[str, ...]:
    """Who takes part: those named in `text`, or else all that aren't `missing`.

    Raises:
        InputError: one that is named is unknown, or missing.
    """
    if text is None:
        return tuple(peer for peer in PEERS if peer not in missing)
    if text == _NONE:
        return ()
    chosen = choices_of("--peer", text, PEERS)
    if absent := [missing[peer] for peer in chosen if peer in missing]:
        raise InputError(f"--peer {text}: {'; '.join(absent)}")
    return chosen


def _check_chart(chart: Path, names: Sequence[str]) -> None:
    if chart.suffix not in _CHART_ENDINGS:
        raise InputError(f"--chart {chart}: a name that ends in {' or '.join(_CHART_ENDINGS)} was expected")
    if not any(isinstance(CASES[name], OverloadCase) for name in names):
        raise InputError(f"--chart {chart} draws the case overload, which --case {','.join(names)} doesn't name")
    check_writable(chart, "--chart")


def _draw(chart: Path, found: "Sequence[CaseRounds | OverloadRounds]") -> None:
    from fuseline.benchmarks.peers.overload import OverloadRounds
    from fuseline.benchmarks.report.charts import overload_chart

    (drawn,) = (each for each in found if isinstance(each, OverloadRounds))
    overload_chart(chart, drawn.curves(), drawn.case.deadline_ms)
