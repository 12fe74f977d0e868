"""`fuseline bench peers`: Fuseline beside a bare grpc.aio echo, Triton and Mosec, in one interleaved run.

All get the same pictures from the same load generator, in turn. Where the model costs next to nothing (see
`fuseline.benchmarks.harness.tiny_package`), what is compared is what the front ends cost; where it is ResNet-18, what
they leave of the engine, which is the same ONNX Runtime with the same graph behind all of them. A ratio is of two
neighbours in time. Under overload each contender is held against its own capacity, by what it keeps of it in goodput.
The exit code is 1 if a bar is missed.
"""

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

from fuseline.benchmarks.peers.cases import CASES, CONTENDERS, PEER_SERVERS, Case, OverloadCase
from fuseline.benchmarks.peers.model import PeerModel
from fuseline.benchmarks.peers.overload import OverloadRounds
from fuseline.benchmarks.peers.processes import ECHOES, started_echo
from fuseline.benchmarks.peers.rounds import CaseRounds, Stretch
from fuseline.benchmarks.peers.served_model import served_model

T = TypeVar("T")


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
        echoes = {server: stack.enter_context(started_echo(server)) for server in _echoes_of(found, peers)}
        for model in dict.fromkeys(each.case.model for each in found):
            alike = [each for each in found if each.case.model == model]
            contenders = {each.name: contenders_of(each.case, peers) for each in alike}
            everyone = dict.fromkeys(name for names_of_case in contenders.values() for name in names_of_case)
            if not everyone:
                continue
            network, side, _, jpeg = model
            say(f"starting the servers of {network or 'the tiny model'} at {side}{', JPEG' if jpeg else ''}")
            with served_model(alike[0].case, everyone, echoes, folder) as served:
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


def _echoes_of(found: Sequence[CaseRounds | OverloadRounds], peers: Collection[str]) -> list[str]:
    """Which of `ECHOES` are wanted."""
    wanted = {CONTENDERS[name].server for each in found for name in contenders_of(each.case, peers)}
    return [server for server in ECHOES if server in wanted]


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
