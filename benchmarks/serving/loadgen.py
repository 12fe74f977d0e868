"""MLPerf LoadGen drives a server: an instrument that others wrote, to hold ours against.

The scenarios are those of the MLPerf Inference rules (https://github.com/mlcommons/inference_policies):

| scenario | requests | its figure |
|---|---|---|
| SingleStream | the next one when the last is answered | latency |
| Server | Poisson arrivals, latency from when each was scheduled | latency at that rate |
| Offline | all known from the start; here so many under way | samples/s |

LoadGen is C++ and calls back from threads of its own; the gRPC calls are made in its process. Only performance mode is
run: answers are checked by us, as those of our own load.
"""

import json
import multiprocessing
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc

from fuseline.benchmarks.harness.timing import BURN_IN_S
from fuseline.benchmarks.load.calls import CHANNEL_OPTIONS
from fuseline.benchmarks.load.target import Target
from fuseline.serve.errors import BackendError, BackendUnavailableError

SCENARIOS = ("SingleStream", "Offline", "Server")
_PERCENTILES = {"p50": "50.00", "p90": "90.00", "p99": "99.00"}
_LOG_LINE = ":::MLLOG "
_STALL_S = 120.0


@dataclass(frozen=True, slots=True)
class LoadGenPlan:
    """One scenario, one stretch."""

    scenario: str
    """One of `SCENARIOS`."""
    seconds: float
    """How long LoadGen goes on, at least."""
    rate_per_s: float = 1.0
    """Server: arrivals. Offline: what is expected, which says how many samples `seconds` are worth."""
    concurrency: int = 1
    """Offline: requests under way at a time; LoadGen itself hands over all at once, which no bounded queue takes."""
    deadline_s: float = 0.1
    """Server: the latency that LoadGen's own verdict is about."""
    burn_in_s: float = BURN_IN_S
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LoadGenFigures:
    """LoadGen's own account of a stretch."""

    scenario: str
    samples: int
    samples_per_s: float
    latency_ms: dict[str, float]
    """p50, p90, p99 and mean."""
    valid: bool
    """Whether a submission could be made of it; short stretches never are."""
    invalid_reason: str
    details: dict[str, Any] = field(default_factory=dict)
    """Every `result_` of its log, and its version."""


def run_loadgen(target: Target, plan: LoadGenPlan) -> LoadGenFigures:
    """Let LoadGen measure `target` in a process of its own; requests hold one image.

    Raises:
        VerificationError: an answer is wrong.
        BackendError: a request failed, or LoadGen ended without a result.
        BackendUnavailableError: LoadGen is not installed.
    """
    if find_spec("mlperf_loadgen") is None:
        raise BackendUnavailableError(
            "LoadGen is not installed; pip install 'fuseline[bench]' brings it on Python 3.11 to 3.13, and for later "
            "ones mlcommons-loadgen has no wheels"
        )
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    requests = target.requests(1, with_logits=False)
    with tempfile.TemporaryDirectory(prefix="fuseline-loadgen-") as folder:
        arguments = (theirs, target.address, target.protocol.method, requests, plan, folder)
        process = context.Process(target=_run, args=arguments, daemon=True)
        process.start()
        theirs.close()
        try:
            if not ours.poll(_STALL_S + plan.burn_in_s + 3 * plan.seconds):
                raise BackendError(f"LoadGen gave no result for {plan.scenario} in time; is the server overloaded?")
            errors, answers = ours.recv()
        except EOFError as error:
            raise BackendError("LoadGen died; what it said is on stderr") from error
        finally:
            ours.close()
            process.join(1)
            if process.is_alive():
                process.kill()
                process.join()
        if errors:
            failed = ", ".join(f"{number} {status}" for status, number in errors.items())
            raise BackendError(f"requests failed under LoadGen's {plan.scenario}: {failed}")
        for index, answer in answers.items():
            expected = target.expected[target.pictures_of(index, 1)]
            target.protocol.check(f"the server at {target.address}", target.precision, answer, expected)
        return figures_from_log(plan.scenario, (Path(folder) / "mlperf_log_detail.txt").read_text(encoding="utf-8"))


def figures_from_log(scenario: str, detail_log: str) -> LoadGenFigures:
    """What LoadGen says in `mlperf_log_detail.txt`, one JSON object a line.

    Raises:
        BackendError: it holds no result of `scenario`.
    """
    lines = [line.removeprefix(_LOG_LINE) for line in detail_log.splitlines() if line.startswith(_LOG_LINE)]
    entries = {entry["key"]: entry["value"] for entry in map(json.loads, lines)}
    rate = {
        "SingleStream": "result_qps_with_loadgen_overhead",
        "Offline": "result_samples_per_second",
        "Server": "result_completed_samples_per_sec",
    }[scenario]
    try:
        latency_ms = {
            name: entries[f"result_{percentile}_percentile_latency_ns"] / 1e6
            for name, percentile in _PERCENTILES.items()
        }
        return LoadGenFigures(
            scenario=scenario,
            samples=entries["result_query_count"] * entries["effective_samples_per_query"],
            samples_per_s=entries[rate],
            latency_ms=latency_ms | {"mean": entries["result_mean_latency_ns"] / 1e6},
            valid=entries["result_validity"] == "VALID",
            invalid_reason=entries.get("result_invalid_reason", "").strip(),
            details={
                key: value
                for key, value in entries.items()
                if key.startswith(("result_", "early_stopping_")) or key == "loadgen_version"
            },
        )
    except KeyError as error:
        raise BackendError(f"LoadGen's log of {scenario} has no {error}; its version may be another one") from error


@dataclass(slots=True)
class _Server:
    """LoadGen's system under test: sends what it is given and tells it when each is answered."""

    call: "grpc.UnaryUnaryMultiCallable[bytes, bytes]"
    requests: tuple[bytes, ...]
    complete: Callable[[int], None]
    errors: Counter[str] = field(default_factory=Counter)
    answers: dict[int, bytes] = field(default_factory=dict)

    def ask_and_wait(self, samples: list[Any]) -> None:
        """SingleStream: one at a time."""
        for sample in samples:
            try:
                self.answers[sample.index] = self.call(self.requests[sample.index])
            except grpc.RpcError as error:
                self.errors[error.code().name] += 1
            self.complete(sample.id)

    def ask(self, samples: list[Any], done: Callable[[], None] = lambda: None) -> None:
        """Server: send and return. `done` is called after each answer."""

        def settle(sample_id: int, index: int) -> Callable[[Any], None]:
            def answered(future: Any) -> None:
                if (error := future.exception()) is None:
                    self.answers[index] = future.result()
                else:
                    self.errors[error.code().name] += 1
                self.complete(sample_id)
                done()

            return answered

        for sample in samples:
            self.call.future(self.requests[sample.index]).add_done_callback(settle(sample.id, sample.index))

    def ask_bounded(self, samples: list[Any], under_way: threading.Semaphore) -> None:
        """Offline: all of them, so many at a time."""
        for sample in samples:
            under_way.acquire()
            self.ask([sample], under_way.release)


def _run(
    connection: Connection, address: str, method: str, requests: tuple[bytes, ...], plan: LoadGenPlan, folder: str
) -> None:
    import mlperf_loadgen  # type: ignore[import-not-found]

    def complete(sample_id: int) -> None:
        mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(sample_id, 0, 0)])

    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        server = _Server(channel.unary_unary(method), requests, complete)
        _burn_in(server, plan.burn_in_s)
        under_way = threading.Semaphore(plan.concurrency)
        issue = {
            "SingleStream": server.ask_and_wait,
            "Server": server.ask,
            "Offline": lambda samples: server.ask_bounded(samples, under_way),
        }[plan.scenario]
        sut = mlperf_loadgen.ConstructSUT(issue, lambda: None)
        qsl = mlperf_loadgen.ConstructQSL(len(requests), len(requests), lambda _: None, lambda _: None)
        try:
            mlperf_loadgen.StartTestWithLogSettings(
                sut, qsl, _settings(mlperf_loadgen, plan), _log_settings(mlperf_loadgen, folder), ""
            )
        finally:
            mlperf_loadgen.DestroyQSL(qsl)
            mlperf_loadgen.DestroySUT(sut)
        connection.send((server.errors, server.answers))


def _burn_in(server: _Server, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        server.call(server.requests[0], timeout=_STALL_S)


def _settings(mlperf_loadgen: Any, plan: LoadGenPlan) -> Any:
    settings = mlperf_loadgen.TestSettings()
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.scenario = getattr(mlperf_loadgen.TestScenario, plan.scenario)
    settings.min_duration_ms = max(1, round(plan.seconds * 1e3))
    settings.min_query_count = 1
    settings.offline_expected_qps = plan.rate_per_s
    settings.server_target_qps = plan.rate_per_s
    settings.server_target_latency_ns = round(plan.deadline_s * 1e9)
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = plan.seed
    return settings


def _log_settings(mlperf_loadgen: Any, folder: str) -> Any:
    settings = mlperf_loadgen.LogSettings()
    settings.enable_trace = False
    settings.log_output.outdir = folder
    settings.log_output.copy_summary_to_stdout = False
    return settings
