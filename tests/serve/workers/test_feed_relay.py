"""What each process tells reaches the workers that somebody watches."""

from dataclasses import dataclass, field
from typing import Any, cast

from fuseline.serve.workers.feed_relay import FeedRelay
from fuseline.serve.workers.supervised import SupervisedProcess


@dataclass(eq=False)
class Process:
    title: str
    rates: list[float] = field(default_factory=list)
    chunks: list[str] = field(default_factory=list)

    def send_feed(self, rate: float) -> None:
        self.rates.append(rate)

    def send_chunk(self, chunk: str) -> None:
        self.chunks.append(chunk)


class Processes:
    def __init__(self) -> None:
        self.all = [Process("backend"), Process("worker 1"), Process("worker 2")]
        self.relay = FeedRelay(lambda: cast("list[SupervisedProcess]", self.all), 2)

    def take(self, process: Process, **message: Any) -> None:
        self.relay.take(cast("SupervisedProcess", process), message)

    def rates(self) -> list[list[float]]:
        return [process.rates for process in self.all]


def test_while_any_worker_is_watched_all_tell_and_together_as_much_as_one_would() -> None:
    processes = Processes()
    _, one, two = processes.all
    processes.take(one, kind="watch", is_watched=True)
    assert processes.rates() == [[200.0], [100.0], [100.0]]
    processes.take(two, kind="watch", is_watched=True)
    processes.take(one, kind="watch", is_watched=False)
    assert processes.rates() == [[200.0], [100.0], [100.0]]
    processes.take(two, kind="watch", is_watched=False)
    assert processes.rates() == [[200.0, 0.0], [100.0, 0.0], [100.0, 0.0]]


def test_only_the_workers_that_are_watched_get_what_all_tell() -> None:
    processes = Processes()
    backend, one, two = processes.all
    processes.take(backend, kind="chunk", chunk="early")
    processes.take(two, kind="watch", is_watched=True)
    processes.take(backend, kind="chunk", chunk="a")
    processes.take(two, kind="chunk", chunk="b")
    assert (backend.chunks, one.chunks, two.chunks) == ([], [], ["a", "b"])


def test_a_process_that_starts_again_tells_at_once_if_anyone_watches() -> None:
    processes = Processes()
    _, one, _ = processes.all
    again = Process("backend")
    processes.relay.begin(cast("SupervisedProcess", again))
    assert again.rates == []
    processes.take(one, kind="watch", is_watched=True)
    processes.relay.begin(cast("SupervisedProcess", again))
    assert again.rates == [200.0]


def test_a_watched_worker_that_ends_is_sent_nothing_more_and_if_it_was_the_last_all_fall_silent() -> None:
    processes = Processes()
    backend, one, _ = processes.all
    processes.take(one, kind="watch", is_watched=True)
    processes.relay.leave(cast("SupervisedProcess", one))
    processes.take(backend, kind="chunk", chunk="late")
    assert one.chunks == []
    assert backend.rates == [200.0, 0.0]
    processes.relay.leave(cast("SupervisedProcess", one))
    assert backend.rates == [200.0, 0.0]
