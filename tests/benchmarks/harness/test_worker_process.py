import pytest

from fuseline.benchmarks.harness.timing import timed_calls
from fuseline.benchmarks.harness.worker_process import WorkerProcess, WorkFailedError
from tests.benchmarks.gpu.faults import start_echo, start_refusing


def test_a_worker_answers_fails_and_is_over() -> None:
    with WorkerProcess(start_echo) as worker:
        worker.ready(60)
        assert worker.ask("echo", 1, "two", timeout_s=60) == (1, "two")
        with pytest.raises(WorkFailedError, match="ValueError: no net.py here") as failed:
            worker.ask("fail", "no /home/me/secret/net.py here", timeout_s=60)
        assert failed.value.kind == "failed"
        with pytest.raises(WorkFailedError, match="died with exit code 0|is gone"):
            worker.ask("echo", timeout_s=60)


def test_a_worker_that_gives_no_answer_is_ended() -> None:
    with WorkerProcess(start_echo) as worker:
        worker.ready(60)
        with pytest.raises(WorkFailedError, match="no answer for 0 s") as failed:
            worker.ask("hang", timeout_s=0.05)
        assert failed.value.kind == "too slow"
        worker._process.join(60)
        assert worker._process.exitcode is not None


def test_closing_a_worker_at_work_waits_for_nothing() -> None:
    worker = WorkerProcess(start_echo)
    worker.ready(60)
    with pytest.raises(WorkFailedError):
        worker.ask("hang", timeout_s=0.05)
    worker.close()
    worker.close()
    assert not worker._process.is_alive()


def test_what_can_not_start_is_not_here() -> None:
    with WorkerProcess(start_refusing) as worker:
        with pytest.raises(WorkFailedError, match="^no GPU is here$") as failed:
            worker.ready(60)
        assert failed.value.kind == "not here"


def test_a_worker_that_is_killed_says_by_what() -> None:
    with WorkerProcess(start_echo) as worker:
        worker.ready(60)
        worker._process.kill()
        worker._process.join(60)
        with pytest.raises(WorkFailedError, match="SIGKILL") as failed:
            worker.ask("echo", timeout_s=60)
        assert failed.value.kind == "failed"


@pytest.mark.parametrize(
    "words",
    ["CUDA out of memory. Tried to allocate 2 GiB", "cudaMalloc failed: cudaErrorMemoryAllocation", "std::bad_alloc"],
)
def test_out_of_memory_is_told_apart(words: str) -> None:
    with WorkerProcess(start_echo) as worker:
        worker.ready(60)
        with pytest.raises(WorkFailedError) as failed:
            worker.ask("fail", words, timeout_s=60)
        assert failed.value.kind == "out of memory"


def test_the_first_call_is_not_counted_and_one_always_is() -> None:
    calls: list[int] = []
    assert len(timed_calls(lambda: calls.append(1), 0.0)) == 1
    assert len(calls) == 2
