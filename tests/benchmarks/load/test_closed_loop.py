import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fuseline.benchmarks.harness.server_process import ServerProcess, started_server
from fuseline.benchmarks.load.closed_loop import answers_in_window, run_closed_loop
from fuseline.benchmarks.load.target import connect
from fuseline.protos import classify_pb2
from fuseline.serve.errors import BackendError
from tests.benchmarks.load.colour_requests import load, request
from tests.fakes.colours import LABELS, plain


@pytest.mark.parametrize("start", [3.0, 3.005, 3.01, 3.3, 3.5, 3.505, 3.9])
@pytest.mark.parametrize("sizes", [(32,), (2, 30), (1, 31)])
def test_bursts_count_whole_wherever_the_window_begins(start: float, sizes: tuple[int, ...]) -> None:
    # 32 callers, answered within 10 ms, in every second: 32 a second, in truth.
    offsets = [burst * 0.1 + row * 0.01 / 32 for burst, size in enumerate(sizes) for row in range(size)]
    finished = np.array([second + offset for second in range(1, 20) for offset in offsets])
    counted = answers_in_window(finished, (start, start + 5.5), 32)
    assert counted is not None
    chosen, span = counted
    assert chosen.sum() / span == pytest.approx(32)


def test_order_of_the_answers_does_not_matter() -> None:
    chosen, span = answers_in_window(np.array([5.0, 1.0, 3.0, 2.0, 4.0]), (1.5, 4.5), 1) or pytest.fail("none counted")
    assert chosen.tolist() == [False, False, True, True, True]
    assert span == 3.0


@pytest.mark.parametrize("finished", [[], [1.0], [2.5], [1.0, 9.0]])
def test_too_few_answers_give_no_rate(finished: list[float]) -> None:
    assert answers_in_window(np.array(finished), (2.0, 3.0), 4) is None


def test_a_server_is_driven_and_its_answers_are_kept(colours_server: ServerProcess) -> None:
    edges: list[int] = []
    result = run_closed_loop(load(colours_server.address), lambda: edges.append(1))

    assert len(edges) == 2
    assert not result.errors
    assert result.requests_per_s == pytest.approx(len(result.latency_s) / result.window_s)
    assert result.latency_s.min() > 0
    # Little's law: in a closed loop throughput times latency is the number under way.
    assert result.requests_per_s * result.latency_s.mean() == pytest.approx(4, rel=0.5)
    assert result.generator_cpu_share > 0
    responses = [(index, classify_pb2.ClassifyResponse.FromString(answer)) for index, answer in result.answers]
    assert all(response.results[0].predictions[0].label == LABELS[index] for index, response in responses)
    kinds = Counter(bool(response.results[0].logits) for _, response in responses)
    assert kinds[True] >= 4
    assert kinds[False] == len(LABELS)


def test_a_server_is_driven_past_the_proxy(colours_server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert connect(colours_server.address).model.name == "colours"
        result = run_closed_loop(load(colours_server.address))
    assert not result.errors
    assert len(result.latency_s)


def test_answers_beyond_what_a_pipe_holds_come_whole(colours_server: ServerProcess) -> None:
    image = classify_pb2.Image(raw=plain("red").tobytes())
    many = classify_pb2.ClassifyRequest(images=[image] * 100, top_k=4, return_logits=True).SerializeToString()
    result = run_closed_loop(load(colours_server.address, requests=(many,), burn_in_requests=(many,), burn_in_s=0.5))
    answers = [classify_pb2.ClassifyResponse.FromString(answer) for _, answer in result.answers]
    assert sum(answer.ByteSize() for answer in answers) > 2**18
    assert all(len(answer.results) == 100 for answer in answers)


def test_several_processes_share_the_concurrency(colours_server: ServerProcess) -> None:
    result = run_closed_loop(load(colours_server.address, concurrency=3, processes=2))
    assert result.requests_per_s * result.latency_s.mean() == pytest.approx(3, rel=0.5)


def test_errors_are_counted_and_are_no_answers(colours_server: ServerProcess) -> None:
    requests = (request("red"), request("red", model="nobody"))
    result = run_closed_loop(load(colours_server.address, requests=requests))
    assert set(result.errors) == {"NOT_FOUND"}
    assert {index for index, answer in result.answers[-1:]} == {0}


def test_a_server_that_refuses_everything_gives_no_figure(colours_server: ServerProcess) -> None:
    bad = (request("red", model="nobody"),)
    with pytest.raises(BackendError, match=r"\d+ NOT_FOUND"):
        run_closed_loop(load(colours_server.address, requests=bad, burn_in_requests=bad))


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    why = pytest.raises(BackendError, match=r"never ready \(exit code 2\): error: there is no folder")
    with why, started_server(tmp_path / "nothing"):
        pytest.fail("it started")
