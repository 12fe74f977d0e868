"""Replicas come and go under load: no answer is wrong, and only what was in a process that died fails.

Each check notes what it took in build/ray/recovery.json.
"""

import json
import os
import signal
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fuseline.benchmarks.harness.results import Conditions, conditions, write_json
from fuseline.protos.classify_pb2_grpc import ClassifierStub
from fuseline.serve.model_package import load_package, save_manifest
from tests.deploy.ray.cluster import ROOT, wait_until
from tests.deploy.ray.load import Expected, Load, load_on
from tests.serve.services.classify_requests import raw_request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

RECORD = ROOT / "build/ray/recovery.json"

CLIENTS = 6


@pytest.fixture(scope="module")
def taken() -> Conditions:
    return conditions("make ray-test")


class Record:
    """Figures of each check, in one file."""

    def __init__(self, taken: Conditions) -> None:
        self._taken = taken
        self._figures: dict[str, Any] = {}

    def note(self, check: str, load: Load, **figures: Any) -> None:
        """Note what `check` took, and what came of the load meanwhile."""
        counts = {"answered": load.answered, "wrong": load.wrong, "failed": load.codes}
        rounded = {name: round(value, 2) if isinstance(value, float) else value for name, value in figures.items()}
        self._figures[check] = {**rounded, **counts, "slowest_answer_s": round(load.slowest_s, 2)}
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        write_json(RECORD, {"benchmark": "ray-recovery", **self._taken.facts, "checks": self._figures})
        print(check, json.dumps(self._figures[check]))


@pytest.fixture(scope="module")
def record(taken: Conditions) -> Record:
    return Record(taken)


@pytest.fixture
def application(cluster: Any) -> Iterator[Any]:
    """The cluster, without an application again at the end."""
    yield cluster
    cluster.delete()


@pytest.fixture(scope="module")
def expected(tiny: Path) -> Expected:
    return Expected.of(tiny)


@pytest.fixture(scope="module")
def next_version(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 2 of the tiny model, whose logits are others."""
    folder = tmp_path_factory.mktemp("packages") / "tiny-2"
    folder.mkdir()
    rewritten(tiny, folder)
    return folder


def rewritten(package: Path, folder: Path) -> None:
    """Write `package` to `folder` with other weights, as version 2."""
    from fuseline.benchmarks.harness.tiny_package import write_reference
    from fuseline.serve.backends.onnxruntime import open_session
    from fuseline.serve.model_package import file_facts
    from fuseline.serve.reference import REFERENCE_NAME, read_reference

    before = load_package(package)
    model = onnx.load(package / "model.onnx")
    for constant in model.graph.initializer:
        if constant.name == "weights":
            constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) * np.float32(-2), "weights"))
    (folder / "model.onnx").write_bytes(graph := model.SerializeToString())
    pixels, _ = read_reference(before)
    write_reference(folder, pixels, open_session(graph, threads=1).run(None, {"image": pixels})[0])
    (artifact,) = before.manifest.artifacts
    changed = before.manifest.model_copy(
        update={
            "version": "2",
            "artifacts": (artifact.model_copy(update=file_facts(folder, "model.onnx")),),
            "reference": before.manifest.reference.model_copy(update=file_facts(folder, REFERENCE_NAME)),
        }
    )
    save_manifest(folder, changed)


def until_running(cluster: Any, count: int, seconds: float, *, without: Collection[int] = ()) -> float:
    """Return how long it took until so many replicas ran, none in a process of `without`, and no other was there."""
    began = time.monotonic()

    def whole() -> bool | None:
        # Ray notices a death only after a moment.
        pids = cluster.replica_pids()
        is_whole = len(pids) == count and not set(pids) & set(without) and cluster.replicas() == {"RUNNING": count}
        return True if is_whole else None

    assert wait_until(whole, seconds), f"{count} replicas were expected, there are {cluster.replicas()}"
    return time.monotonic() - began


def test_replicas_follow_the_load_up_and_down(application: Any, tiny: Path, expected: Expected, record: Record) -> None:
    # The model hardly computes: a target so low has the clients' load want as many as there may be.
    application.run(
        tiny,
        max_replicas=3,
        target_busy=0.005,
        upscale_delay_s=1,
        downscale_delay_s=3,
        look_back_period_s=3,
    )
    with load_on(application.grpc_address, [expected], clients=CLIENTS) as load:
        up_s = until_running(application, 3, 90)
        time.sleep(1)
        # A trickle goes on while replicas are taken away.
    with load_on(application.grpc_address, [expected], clients=1, pause_s=1.0) as trickle:
        down_s = until_running(application, 1, 90)
    load.answered += trickle.answered
    record.note("1 -> 3 -> 1 replicas", load, up_s=up_s, down_s=down_s)
    assert (load.failed, load.wrong, trickle.failed, trickle.wrong) == ([], 0, [], 0)


def test_a_replica_that_is_killed_fails_only_what_it_had(
    application: Any, tiny: Path, expected: Expected, record: Record
) -> None:
    # Each request waits a while for others, so that every replica has some when it dies.
    application.run(tiny, min_replicas=3, max_delay_ms=300)
    with load_on(application.grpc_address, [expected], clients=CLIENTS) as load:
        assert wait_until(lambda: True if load.answered > 50 else None, 60)
        victim, *others = application.replica_pids()
        assert len(others) == 2
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        whole_s = until_running(application, 3, 90, without=[victim])
        answered = load.answered
        assert wait_until(lambda: True if load.answered > answered + 50 else None, 60)
    record.note("a replica killed", load, failures_end_s=load.failures_after(killed), whole_again_s=whole_s)
    assert load.wrong == 0
    assert 1 <= len(load.failed) <= CLIENTS, load.failed
    assert set(load.codes) <= {"INTERNAL", "UNAVAILABLE"}, load.failed
    assert load.failures_after(killed) < 10


def test_an_update_fails_nothing(
    application: Any, tiny: Path, next_version: Path, expected: Expected, record: Record
) -> None:
    following = Expected.of(next_version)
    assert not following.is_right(0, expected.logits[0])
    application.run(tiny, min_replicas=2)
    with load_on(application.grpc_address, [expected, following], clients=CLIENTS) as load:
        assert wait_until(lambda: True if load.answered > 50 else None, 60)
        began = time.monotonic()
        application.run(next_version, min_replicas=2)
        until_running(application, 2, 90)
        update_s = time.monotonic() - began
        load.by_version.clear()
        assert wait_until(lambda: True if load.by_version.total() > 50 else None, 60)
    record.note("an update of 2 replicas", load, update_s=update_s)
    assert (load.failed, load.wrong) == ([], 0)
    assert load.by_version["1"] <= CLIENTS  # those that were under way


def test_a_node_that_is_killed_fails_only_what_it_had(
    application: Any, tiny: Path, expected: Expected, record: Record
) -> None:
    application.run(tiny, min_replicas=3)
    application.add_node()
    victim = next(node for node in application.nodes if application.replica_pids(node))
    lost = application.replica_pids(victim)
    with load_on(application.grpc_address, [expected], clients=CLIENTS) as load:
        assert wait_until(lambda: True if load.answered > 50 else None, 60)
        killed = time.monotonic()
        application.kill_node(victim)
        whole_s = until_running(application, 3, 120, without=lost)
        answered = load.answered
        assert wait_until(lambda: True if load.answered > answered + 50 else None, 60)
    record.note(
        "a node killed",
        load,
        replicas_lost=len(lost),
        failures_end_s=load.failures_after(killed),
        whole_again_s=whole_s,
    )
    assert load.wrong == 0
    assert len(load.failed) <= CLIENTS, load.failed


@pytest.mark.slow
def test_a_replica_that_hangs_is_replaced(application: Any, tiny: Path, expected: Expected, record: Record) -> None:
    from tests.deploy.ray.hanging_replica import WHITE, run_hanging

    run_hanging(tiny, min_replicas=2)
    before = application.replica_pids()
    with load_on(application.grpc_address, [expected], clients=CLIENTS) as load:
        assert wait_until(lambda: True if load.answered > 50 else None, 60)
        began = time.monotonic()
        with grpc.insecure_channel(application.grpc_address) as channel:
            hanging = ClassifierStub(channel).Classify.future(raw_request(WHITE), timeout=60)
            assert hanging.exception() is not None
        assert wait_until(lambda: True if len(application.replica_pids()) == 2 else None, 60)
        assert wait_until(lambda: True if application.replica_pids() != before else None, 60)
        until_running(application, 2, 90)
        whole_s = time.monotonic() - began
        answered = load.answered
        assert wait_until(lambda: True if load.answered > answered + 50 else None, 60)
    record.note("a replica that hangs", load, failures_end_s=load.failures_after(began), whole_again_s=whole_s)
    assert load.wrong == 0
    assert len(load.failed) <= 2 * CLIENTS, load.failed
