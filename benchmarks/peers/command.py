"""`fuseline bench peers`: Fuseline beside a bare grpc.aio echo, Triton and Mosec, in one interleaved run.

All get the same pictures from the same load generator, in turn. Where the model costs next to nothing (see
`fuseline.benchmarks.harness.tiny_package`), what is compared is what the front ends cost; where it is ResNet-18, what
they leave of the engine, which is the same ONNX Runtime with the same graph behind all of them. A ratio is of two
neighbours in time. Under overload each contender is held against its own capacity, by what it keeps of it in goodput.
The exit code is 1 if a bar is missed.
"""

import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from fuseline.benchmarks.harness.machine import describe
from fuseline.benchmarks.harness.options import choices_of
from fuseline.benchmarks.harness.results import check_writable, conditions, write_result
from fuseline.benchmarks.peers.cases import CASES, CONTENDERS, PEER_SERVERS, PEERS, Case, OverloadCase
from fuseline.benchmarks.peers.model import PeerModel, served_model
from fuseline.benchmarks.peers.overload import OverloadRounds
from fuseline.benchmarks.peers.processes import peer_versions, started_echo, why_left_out
from fuseline.benchmarks.peers.rounds import CaseRounds, Stretch, as_json, verdicts
from fuseline.benchmarks.peers.table import as_tables
from fuseline.serve.errors import InputError

T = TypeVar("T")

_USUAL = tuple(name for name, case in CASES.items() if not isinstance(case, OverloadCase))

_NONE = "none"
_PIPE_WIDTH = 200
_CHART_ENDINGS = (".png", ".svg")


def run_peers(
    names: Sequence[str],
    *,
    peers: Collection[str],
    rounds: int,
    seconds: float,
    say: Callable[[str], None] = lambda _: None,
) -> list[CaseRounds | OverloadRounds]:
    """Measure the cases `names`, each contender `rounds` times for `seconds`, the order turned round every other time.

    `peers`, of `PEERS`, are those that take part. A case whose rate is Triton's is left empty without Triton.

    Raises:
        VerificationError: an answer is wrong.
        BackendError: a server failed, or a request did.
    """
    found = [OverloadRounds(name) if isinstance(CASES[name], OverloadCase) else CaseRounds(name) for name in names]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuseline-peers-")))
        echo = stack.enter_context(started_echo())
        for model in dict.fromkeys(each.case.model for each in found):
            alike = [each for each in found if each.case.model == model]
            contenders = {each.name: contenders_of(each.case, peers) for each in alike}
            everyone = dict.fromkeys(name for names_of_case in contenders.values() for name in names_of_case)
            if not everyone:
                continue
            say(f"starting the servers of {model[0] or 'the tiny model'} at {model[1]}")
            with served_model(alike[0].case, everyone, echo, folder) as served:
                for each in alike:
                    each.left_out = {
                        name: served.left_out[name] for name in contenders[each.name] if name in served.left_out
                    }
                for why in served.left_out.values():
                    say(why)
                for number in range(rounds):
                    for each in alike:
                        what = f"round {number + 1} of {rounds}: {each.case.title}"
                        for name, step in _steps(each, number, contenders[each.name], served, seconds):
                            say(f"{what}: {CONTENDERS[name].title}")
                            step()
    return found


def contenders_of(case: Case, peers: Collection[str]) -> tuple[str, ...]:
    """Who takes part in `case` where only `peers` of the peers are here."""
    if case.share_of_capacity is not None and "triton" not in peers:
        return ()
    return tuple(
        name for name in case.contenders if (peer := PEER_SERVERS.get(CONTENDERS[name].server)) is None or peer in peers
    )


def _steps(
    rounds: CaseRounds | OverloadRounds, number: int, names: Sequence[str], served: PeerModel, seconds: float
) -> Iterator[tuple[str, Callable[[], None]]]:
    """(contender, what measures it and notes that) in the order of a round."""
    stretch_s = max(seconds, rounds.case.least_seconds)
    able = [name for name in names if name not in rounds.left_out]
    ordered = able if number % 2 == 0 else able[::-1]
    if isinstance(rounds, OverloadRounds):
        for name in ordered:
            yield (
                name,
                _noting(rounds.add, name, partial(served.measure_overload, name, rounds.case, stretch_s, seed=number)),
            )
        return
    # The rate of an open loop is found before the first.
    case = rounds.case
    measure: Callable[[str, Case, float], Stretch] = served.measure_closed
    if case.share_of_capacity is not None and names:
        capacity_per_s = served.measure_closed("triton", case, stretch_s).requests_per_s
        rounds.capacity_per_s.append(capacity_per_s)
        rate_per_s = case.share_of_capacity * capacity_per_s
        measure = partial(served.measure_open, rate_per_s=rate_per_s, seed=number)
    for name in ordered:
        yield name, _noting(rounds.add, name, partial(measure, name, case, stretch_s))


def _noting(add: Callable[[str, T], None], name: str, measure: Callable[[], T]) -> Callable[[], None]:
    return lambda: add(name, measure())


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


def main(
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
    names = choices_of("--case", case, CASES)
    if chart is not None:
        _check_chart(chart, names)
    missing = {name: why for name in PEERS if (why := why_left_out(name)) is not None}
    peers = peers_asked_for(peer, missing)
    left_out = {
        name: missing.get(name, f"{PEERS[name]} is left out: --peer {peer} doesn't name it")
        for name in PEERS
        if name not in peers
    }
    if json is not None:
        check_writable(json)
    command = (
        f"fuseline bench peers --case {','.join(names)} --peer {','.join(peers) or _NONE} --rounds {rounds} "
        f"--seconds {seconds:g}"
    )
    taken = conditions(command)
    progress = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(text: str) -> None:
        progress.print(text, markup=False)

    for why in left_out.values():
        say(why)
    found = run_peers(names, peers=peers, rounds=rounds, seconds=seconds, say=say)
    out = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    out.print(as_tables(found, left_out))
    out.print(describe(taken.facts["machine"]), markup=False, soft_wrap=True)
    versions = {name: peer_versions(name) for name in peers}
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


def _check_chart(chart: Path, names: Sequence[str]) -> None:
    if chart.suffix not in _CHART_ENDINGS:
        raise InputError(f"--chart {chart}: a name that ends in {' or '.join(_CHART_ENDINGS)} was expected")
    if not any(isinstance(CASES[name], OverloadCase) for name in names):
        raise InputError(f"--chart {chart} draws the case overload, which --case {','.join(names)} doesn't name")
    check_writable(chart, "--chart")


def _draw(chart: Path, found: Sequence[CaseRounds | OverloadRounds]) -> None:
    from fuseline.benchmarks.report.charts import overload_chart

    (drawn,) = (each for each in found if isinstance(each, OverloadRounds))
    overload_chart(chart, drawn.curves(), drawn.case.deadline_ms)


if __name__ == "__main__":
    typer.run(main)
